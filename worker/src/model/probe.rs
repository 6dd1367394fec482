//! The numerics fingerprint: what bits this machine's kernels produce.

use sha2::{Digest, Sha256};

use super::{Architecture, Batch, Device, EncoderConfig, Head, Input, Pooling, Tower, TowerConfig};
use crate::matrix::Matrix;
use crate::text::TokenBatch;

/// Shapes that reach the backend's different kernels: MiniLM's widths in tiles of its matrix product, and small odd
/// ones that fall beside the tiles.
const SHAPES: [(usize, usize, usize, &[usize]); 2] =
    [(384, 12, 1536, &[24, 17, 9]), (60, 3, 100, &[13, 1, 5, 13])];

/// The backend's name and a digest, in hex, of its kernels' versions and the bits of fixed forward and backward passes on
/// `device`. Kernels are picked from CPU features, GPU model and library versions; two workers with the same fingerprint
/// compute the same bits.
pub fn probe(device: &Device) -> String {
    let mut digest = Sha256::new();
    digest.update(device.backend());
    digest.update(device.kernels());
    let mut feed = |values: &[f32]| values.iter().for_each(|value| digest.update(value.to_le_bytes()));
    for (hidden_size, heads, intermediate_size, lengths) in SHAPES {
        let encoder = EncoderConfig {
            architecture: Architecture::Bert,
            vocabulary_size: 64,
            hidden_size,
            layers: 1,
            heads,
            intermediate_size,
            max_positions: 32,
            token_types: 2,
            layer_norm_epsilon: 1e-12,
            pad_token_id: 0,
        };
        let input = Input::Tokens { encoder, pooling: Pooling::Mean };
        let config = TowerConfig { input, head: Head::Linear { dim: 32, bias: true } };
        let tower = Tower::init(config, 20, device).expect("the probe's tower is valid");
        let rows: Vec<Vec<u32>> =
            lengths.iter().map(|length| (0..*length as u32).map(|i| (i * 37 + 11) % 64).collect()).collect();
        let rows: Vec<&[u32]> = rows.iter().map(Vec::as_slice).collect();
        let batch = Batch::Tokens(TokenBatch::new(&rows, 0));
        let vectors = tower.encode(&batch).expect("the probe's batch fits its tower");
        feed(vectors.data());
        let forward = tower.forward(&batch).expect("the probe's batch fits its tower");
        feed(forward.vectors.data());
        let gradient: Vec<f32> = (0..rows.len() * 32).map(|i| (i % 7) as f32 - 3.0).collect();
        feed(&forward.backward(&Matrix::new(rows.len(), 32, gradient)));
    }
    let hex: String = digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    format!("{}-{hex}", device.backend().replace([':', '+'], "-"))
}
