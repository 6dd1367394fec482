//! Attention with a bias for each head by how far tokens stand apart (MPNet: Song et al., 2020). No backend has a kernel for
//! it here: it is put together from burn's operations, the same ones with and without autodiff.

use burn::tensor::{Tensor, TensorData, activation};

use super::{Texts, padding_mask, select_rows};

/// Distances are told apart up to here.
const FARTHEST: f32 = 128.0;
/// What scores of padding become.
const NEVER: f32 = -1e30;

/// The bias [heads, width, width] from the table [buckets, heads]. A product with ones and zeros: the gradient of a look-up is
/// a sum in no fixed order on GPUs.
pub(in crate::model) fn relative_bias(table: Tensor<2>, texts: &Texts) -> Tensor<3> {
    let (width, [buckets, heads]) = (texts.row_width(), table.dims());
    let mut places = vec![0.0f32; width * width * buckets];
    for (pair, place) in places.chunks_exact_mut(buckets).enumerate() {
        place[bucket(pair / width, pair % width, buckets)] = 1.0;
    }
    let places = TensorData::new(places, [width * width, buckets]);
    let places = Tensor::<2>::from_data(places, &table.device());
    places.matmul(table).reshape([width, width, heads]).permute([2, 0, 1])
}

/// Which row of the table stands for the way from one token to another: half of them for each direction, the first half of
/// those for one distance each, the others for ranges that grow by a factor.
fn bucket(query: usize, key: usize, buckets: usize) -> usize {
    let (half, exact) = (buckets / 2, buckets / 4);
    let (distance, direction) = (query.abs_diff(key), if key > query { half } else { 0 });
    if distance < exact {
        return direction + distance;
    }
    let far = (distance as f32 / exact as f32).ln() / (FARTHEST / exact as f32).ln();
    direction + (exact + (far * (half - exact) as f32) as usize).min(half - 1)
}

/// Attention among the tokens of each text with a bias [heads, width, width] on its scores.
pub(in crate::model) fn biased_attention(
    inputs: [Tensor<2>; 3],
    texts: &Texts,
    heads: usize,
    bias: Tensor<3>,
) -> Tensor<2> {
    let device = inputs[0].device();
    let (count, width, [_, hidden]) = (texts.count(), texts.row_width(), inputs[0].dims());
    let head = hidden / heads;
    let [queries, keys, values] = inputs.map(|input| {
        // A first token stands where a text has none: it is masked as a key, and left out as a query.
        let padded = match texts.width {
            Some(_) => input,
            None => select_rows(input, texts.padded_rows(), &device),
        };
        padded.reshape([count, width, heads, head]).swap_dims(1, 2)
    });
    let scores = queries.matmul(keys.swap_dims(2, 3)) * (1.0 / (head as f64).sqrt());
    let scores = scores + bias.reshape([1, heads, width, width]);
    let scores = match padding_mask(texts, width, heads, &device) {
        Some(mask) => scores.mask_fill(mask, NEVER),
        None => scores,
    };
    let context = activation::softmax(scores, 3).matmul(values);
    let context = context.swap_dims(1, 2).reshape([count * width, hidden]);
    match texts.width {
        Some(_) => context,
        None => select_rows(context, texts.token_places(), &device),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances_have_the_buckets_of_mpnet() {
        // From MPNetEncoder.relative_position_bucket of transformers.
        let check = |query, key, expected| assert_eq!(bucket(query, key, 32), expected, "{query} to {key}");
        for (distance, expected) in [(0, 0), (1, 1), (7, 7), (8, 8), (9, 8), (11, 8), (12, 9), (16, 10)] {
            check(distance, 0, expected);
        }
        for (distance, expected) in
            [(22, 10), (23, 11), (32, 12), (46, 13), (64, 14), (90, 14), (91, 15), (500, 15)]
        {
            check(distance, 0, expected);
            check(0, distance, expected + 16);
        }
        check(3, 4, 17);
    }
}
