//! How token states become one vector. The mean has kernels; the rest is put together from burn's operations.

use burn::tensor::{Device, Tensor, TensorData};
use retort_common::spec::Pooling;

use super::fused::{Texts, fused_mean, select_rows};

/// One vector for each text, [texts, hidden], from the states of its tokens.
pub(super) fn pool(pooling: Pooling, states: Tensor<2>, texts: &Texts, device: &Device) -> Tensor<2> {
    match pooling {
        Pooling::Mean => fused_mean(states, texts),
        Pooling::MeanSqrtLen => {
            let roots = texts.lengths.iter().map(|length| (*length as f32).sqrt()).collect();
            fused_mean(states, texts) * column(roots, device)
        }
        Pooling::WeightedMean => {
            let weights = column(position_weights(texts), device);
            fused_mean(states * weights, texts)
        }
        Pooling::Cls => select_rows(states, texts.starts(), device),
        Pooling::LastToken => {
            let ends = texts.starts().into_iter().zip(texts.lengths.iter());
            select_rows(states, ends.map(|(start, length)| start + length - 1).collect(), device)
        }
        Pooling::Max => {
            let [_, hidden] = states.dims();
            // A first token that stands where a text has none changes no maximum.
            let padded = texts.padded_rows();
            let width = padded.len() / texts.count();
            select_rows(states, padded, device)
                .reshape([texts.count(), width, hidden])
                .max_dim(1)
                .reshape([texts.count(), hidden])
        }
    }
}

/// What a mean of the weighted states is the weighted mean of: the weights 1, 2, 3, … over their mean. 0 on padding.
fn position_weights(texts: &Texts) -> Vec<f32> {
    let mut weights = Vec::new();
    for length in texts.lengths.iter() {
        let mean = (*length as f32 + 1.0) / 2.0;
        weights.extend((1..=*length).map(|position| position as f32 / mean));
        weights.resize(weights.len() + texts.width.map_or(0, |width| width - length), 0.0);
    }
    weights
}

/// Values as a constant of shape [rows, 1].
fn column(values: Vec<f32>, device: &Device) -> Tensor<2> {
    let rows = values.len();
    Tensor::from_data(TensorData::new(values, [rows, 1]), device)
}
