//! Tests of the tower as a whole: gradients, bits, refusals.

use super::*;
use crate::matrix::Matrix;
use crate::text::TokenBatch;

pub(super) fn tiny_encoder(layers: usize) -> EncoderConfig {
    EncoderConfig {
        architecture: Architecture::Bert,
        vocabulary_size: 50,
        hidden_size: 16,
        layers,
        heads: 2,
        intermediate_size: 24,
        max_positions: 16,
        token_types: 2,
        layer_norm_epsilon: 1e-12,
        pad_token_id: 0,
    }
}

fn token_tower(pooling: Pooling, head: Head) -> Tower {
    tower_on(tiny_encoder(2), pooling, head)
}

fn tower_on(encoder: EncoderConfig, pooling: Pooling, head: Head) -> Tower {
    let config = TowerConfig { input: Input::Tokens { encoder, pooling }, head };
    let mut tower = Tower::init(config, 3, &Device::flex()).unwrap();
    // Larger weights than a fresh model's, and nothing at exactly zero or one, so that every gradient shows.
    let mut params = tower.params();
    params
        .iter_mut()
        .enumerate()
        .for_each(|(i, value)| *value = *value * 5.0 + ((i % 11) as f32 - 5.0) * 0.01);
    tower.set_params(&params).unwrap();
    tower
}

fn padded_batch() -> Batch {
    let rows: [&[u32]; 3] = [&[1, 7, 9, 30, 2], &[1, 44, 2], &[1, 7, 7, 2]];
    Batch::Tokens(TokenBatch::new(&rows, 0))
}

fn ramp(rows: usize, dim: usize) -> Matrix {
    Matrix::new(rows, dim, (0..rows * dim).map(|i| ((i * 7) % 13) as f32 / 6.0 - 1.0).collect())
}

fn towers() -> Vec<(Tower, Batch)> {
    let vectors = |head| {
        let config = TowerConfig { input: Input::Vectors { dim: 6 }, head };
        (Tower::init(config, 5, &Device::flex()).unwrap(), Batch::Vectors(ramp(4, 6)))
    };
    let tokens = |pooling, head| (token_tower(pooling, head), padded_batch());
    let mpnet = EncoderConfig { architecture: Architecture::Mpnet, token_types: 0, ..tiny_encoder(2) };
    vec![
        (tower_on(mpnet, Pooling::Mean, Head::None), padded_batch()),
        tokens(Pooling::Max, Head::None),
        tokens(Pooling::MeanSqrtLen, Head::None),
        tokens(Pooling::WeightedMean, Head::None),
        tokens(Pooling::LastToken, Head::None),
        tokens(Pooling::Mean, Head::Linear { dim: 4, bias: true }),
        tokens(Pooling::Cls, Head::None),
        tokens(Pooling::Mean, Head::Mlp { hidden: 10, dim: 4 }),
        vectors(Head::Linear { dim: 3, bias: false }),
        vectors(Head::Mlp { hidden: 5, dim: 3 }),
    ]
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

#[test]
fn gradients_agree_with_finite_differences() {
    for (mut tower, batch) in towers() {
        let dim = tower.config().dim();
        let d_vectors = ramp(batch.rows(), dim);
        let gradient = tower.forward(&batch).unwrap().backward(&d_vectors);
        let params = tower.params();
        let mut loss = |params: &[f32]| -> f64 {
            tower.set_params(params).unwrap();
            let vectors = tower.encode_training(&batch).unwrap();
            vectors.data().iter().zip(d_vectors.data()).map(|(v, d)| f64::from(*v) * f64::from(*d)).sum()
        };
        let norm = gradient.iter().map(|g| f64::from(*g).powi(2)).sum::<f64>().sqrt();
        // One value in every stretch of the flat vector, so that each parameter is met.
        for index in (0..params.len()).step_by((params.len() / 150).max(1)) {
            let mut moved = params.clone();
            let step = 4e-3f32;
            moved[index] = params[index] + step;
            let above = loss(&moved);
            moved[index] = params[index] - step;
            let numeric = (above - loss(&moved)) / (2.0 * f64::from(step));
            let found = f64::from(gradient[index]);
            let tolerance = 0.02 * found.abs() + 1e-3 * norm.max(1.0);
            assert!((numeric - found).abs() < tolerance, "index {index}: {found} but numerically {numeric}");
        }
    }
}

#[test]
fn forward_and_encode_training_have_the_same_bits() {
    for (tower, batch) in towers() {
        let forward = tower.forward(&batch).unwrap();
        let training = tower.encode_training(&batch).unwrap();
        assert_eq!(bits(forward.vectors.data()), bits(training.data()));
        let fast = tower.encode(&batch).unwrap();
        for (a, b) in fast.data().iter().zip(training.data()) {
            assert!((a - b).abs() < 1e-5 * a.abs().max(10.0), "{a} and {b}");
        }
    }
}

#[test]
fn dropout_is_the_same_in_both_passes_and_none_is_none() {
    // A linear head has nothing to drop.
    let linear = |tower: &Tower| {
        matches!(tower.config(), TowerConfig { input: Input::Vectors { .. }, head: Head::Linear { .. } })
    };
    for (tower, batch) in towers().into_iter().filter(|(tower, _)| !linear(tower)) {
        let rows = (0..batch.rows() as u64).collect();
        let dropout = Dropout::new(0.2, 1, 2, 3, rows);
        let forward = tower.forward_dropping(&batch, dropout.as_ref()).unwrap();
        let again = tower.encode_dropping(&batch, dropout.as_ref()).unwrap();
        assert_eq!(bits(forward.vectors.data()), bits(again.data()));
        let whole = tower.forward(&batch).unwrap();
        assert_ne!(bits(forward.vectors.data()), bits(whole.vectors.data()));
        let none = Dropout::new(0.0, 1, 2, 3, vec![]);
        let none = tower.forward_dropping(&batch, none.as_ref()).unwrap();
        assert_eq!(bits(none.vectors.data()), bits(whole.vectors.data()));
        let d_vectors = ramp(batch.rows(), tower.config().dim());
        assert_eq!(bits(&none.backward(&d_vectors)), bits(&whole.backward(&d_vectors)));
    }
}

#[test]
fn gradients_have_the_same_bits_on_any_number_of_threads() {
    // Wide enough for the backend to use several threads.
    let encoder = EncoderConfig { hidden_size: 192, heads: 6, intermediate_size: 768, ..tiny_encoder(1) };
    let config = TowerConfig { input: Input::Tokens { encoder, pooling: Pooling::Mean }, head: Head::None };
    let tower = Tower::init(config, 9, &Device::flex()).unwrap();
    let rows: Vec<Vec<u32>> =
        (0..24u32).map(|row| (0..16 - row % 5).map(|i| (row * 5 + i * 3) % 50).collect()).collect();
    let rows: Vec<&[u32]> = rows.iter().map(Vec::as_slice).collect();
    let batch = Batch::Tokens(TokenBatch::new(&rows, 0));
    let run = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let forward = tower.forward(&batch).unwrap();
            let mut found = bits(forward.vectors.data());
            found.extend(bits(tower.encode(&batch).unwrap().data()));
            found.extend(bits(&forward.backward(&ramp(24, 192))));
            found
        })
    };
    let one = run(1);
    assert!(one == run(1) && one == run(2) && one == run(3));
}

#[test]
fn a_vector_has_the_same_bits_in_any_batch() {
    let tower = token_tower(Pooling::Mean, Head::Linear { dim: 4, bias: true });
    let together = tower.encode(&padded_batch()).unwrap();
    let Batch::Tokens(batch) = padded_batch() else { unreachable!() };
    for (row, length) in batch.lengths.iter().enumerate() {
        let ids = &batch.ids[row * batch.width..row * batch.width + *length as usize];
        let alone = tower.encode(&Batch::Tokens(TokenBatch::new(&[ids], 0))).unwrap();
        assert_eq!(bits(alone.data()), bits(together.row(row)), "row {row}");
    }
}

#[test]
fn parameters_go_round_and_initial_ones_are_pinned() {
    let tower = token_tower(Pooling::Mean, Head::Mlp { hidden: 5, dim: 4 });
    let params = tower.params();
    assert_eq!(params.len(), tower.layout().len());
    let copy = Tower::new(tower.config().clone(), &params, &Device::flex()).unwrap();
    assert_eq!(copy.params(), params);
    let config = TowerConfig { input: Input::Vectors { dim: 3 }, head: Head::Linear { dim: 2, bias: true } };
    // Pinned: a change of the generator would change every model trained from a seed.
    let digest = bits(&config.initial_params(1)).iter().fold(0u32, |sum, bits| sum.rotate_left(5) ^ bits);
    assert_eq!(digest, 2_915_559_353, "initial parameters changed");
}

#[test]
fn a_head_takes_pca_components() {
    let config = TowerConfig { input: Input::Vectors { dim: 3 }, head: Head::Linear { dim: 2, bias: true } };
    let mut params = config.initial_params(1);
    let components = Matrix::new(2, 3, vec![1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
    config.set_head(&mut params, &components, &[1.0, 2.0]).unwrap();
    let tower = Tower::new(config.clone(), &params, &Device::flex()).unwrap();
    let found = tower.encode(&Batch::Vectors(Matrix::new(1, 3, vec![1.0, 10.0, 100.0]))).unwrap();
    assert_eq!(found.data(), [322.0, 656.0]);
    let message = config.set_head(&mut params, &Matrix::zeros(3, 2), &[]).unwrap_err().to_string();
    assert!(message.contains("[3, 2]") && message.contains("[2, 3]"), "{message}");
}

#[test]
fn an_mlp_with_room_for_it_starts_as_a_linear_map() {
    let config =
        |hidden| TowerConfig { input: Input::Vectors { dim: 3 }, head: Head::Mlp { hidden, dim: 2 } };
    let components = Matrix::new(2, 3, vec![0.1, 0.2, 0.3, 0.4, -0.5, 0.6]);
    let mut params = config(7).initial_params(1);
    config(7).set_head(&mut params, &components, &[0.1, -0.2]).unwrap();
    let tower = Tower::new(config(7), &params, &Device::flex()).unwrap();
    let found = tower.encode(&Batch::Vectors(Matrix::new(1, 3, vec![1.0, 2.0, 4.0]))).unwrap();
    let near =
        found.data().iter().zip([1.8, 1.6]).all(|(found, expected)| (found - expected).abs() < 1e-6f32);
    assert!(near, "{:?}", found.data());
    let mut params = config(3).initial_params(1);
    let message = config(3).set_head(&mut params, &components, &[0.0, 0.0]).unwrap_err().to_string();
    assert!(message.contains("fewer than two for each of 2 components"), "{message}");
}

#[test]
fn batches_that_do_not_fit_are_refused() {
    let tower = token_tower(Pooling::Cls, Head::None);
    let check = |batch, word: &str| {
        let message = tower.encode(&batch).unwrap_err().to_string();
        assert!(message.contains(word), "{message:?} lacks {word:?}");
        assert!(tower.forward(&batch).is_err());
    };
    check(Batch::Tokens(TokenBatch::new(&[&[1, 50]], 0)), "token id 50");
    check(Batch::Tokens(TokenBatch::new(&[&[1; 17]], 0)), "17 tokens");
    check(Batch::Tokens(TokenBatch::new(&[&[1], &[]], 0)), "empty");
    check(Batch::Tokens(TokenBatch::new(&[], 0)), "texts");
    check(Batch::Vectors(ramp(1, 16)), "tokens");
    let encoder = EncoderConfig { heads: 3, ..tiny_encoder(1) };
    let config = TowerConfig { input: Input::Tokens { encoder, pooling: Pooling::Cls }, head: Head::None };
    assert!(Tower::init(config, 1, &Device::flex()).is_err());
    let config = TowerConfig { input: Input::Vectors { dim: 3 }, head: Head::Linear { dim: 0, bias: false } };
    assert!(Tower::init(config, 1, &Device::flex()).is_err());
}

#[test]
fn configs_are_strict() {
    let text = r#"{"input": {"vectors": {"dim": 3}}, "head": {"linear": {"dim": 2, "bias": false}}}"#;
    let config: TowerConfig = serde_json::from_str(text).unwrap();
    assert_eq!(config.dim(), 2);
    assert!(serde_json::from_str::<TowerConfig>(&text.replace("bias", "biass")).is_err());
    let again: TowerConfig = serde_json::from_str(&serde_json::to_string(&config).unwrap()).unwrap();
    assert_eq!(again, config);
}

#[test]
fn the_probe_is_stable_and_names_its_backend() {
    let found = probe(&Device::flex());
    assert_eq!(found, probe(&Device::parse("flex").unwrap()));
    assert!(found.starts_with("flex-") && found.len() == 5 + 64, "{found}");
}
