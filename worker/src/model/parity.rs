//! Comparison with PyTorch and speed, on a real encoder: run by hand, see `tests/parity/encoder.py`.

use std::path::PathBuf;
use std::time::Instant;

use super::*;
use crate::export::model::{Chain, write_router, write_shared};
use crate::text::{SpecialTokens, TokenBatch, Tokenizer, plan_batches};

fn model_dir() -> PathBuf {
    std::env::var_os("RETORT_MINILM").expect("RETORT_MINILM names the model's directory").into()
}

fn tower() -> Tower {
    let (encoder, params) = load_encoder(&model_dir(), None).unwrap();
    let config = TowerConfig { input: Input::Tokens { encoder, pooling: Pooling::Mean }, head: Head::None };
    Tower::new(config, &params, &Device::flex()).unwrap()
}

#[derive(serde::Deserialize)]
struct Reference {
    max_length: usize,
    texts: Vec<String>,
    ids: Vec<Vec<u32>>,
    vectors: Vec<Vec<f32>>,
}

#[test]
#[ignore = "needs RETORT_MINILM and RETORT_PARITY"]
fn the_encoder_agrees_with_pytorch() {
    let file = std::env::var_os("RETORT_PARITY").expect("RETORT_PARITY names what encoder.py wrote");
    let reference: Reference = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
    let tower = tower();
    let Input::Tokens { encoder, .. } = &tower.config().input else { unreachable!() };
    let tokenizer = Tokenizer::load(&model_dir().join("tokenizer.json"), encoder.vocabulary_size).unwrap();
    let ids = tokenizer.encode_all(&reference.texts, reference.max_length, 2).unwrap();
    assert_eq!(ids, reference.ids);
    let check = |batch: &[usize], name: &str, training: bool| {
        let rows: Vec<&[u32]> = batch.iter().map(|index| ids[*index].as_slice()).collect();
        let tokens = Batch::Tokens(TokenBatch::new(&rows, encoder.pad_token_id));
        let mut found =
            if training { tower.encode_training(&tokens) } else { tower.encode(&tokens) }.unwrap();
        found.normalize_rows();
        let pairs =
            batch.iter().enumerate().flat_map(|(row, i)| found.row(row).iter().zip(&reference.vectors[*i]));
        let difference = pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        eprintln!("{name}: largest difference {difference:e} over {} texts", batch.len());
        assert!(difference < 1e-5, "{name}");
    };
    let all: Vec<usize> = (0..ids.len()).collect();
    check(&all, "all in one padded batch", false);
    check(&all[..16], "kernels of training", true);
    let lengths: Vec<u32> = ids.iter().map(|row| row.len() as u32).collect();
    for batch in plan_batches(&lengths, 2048) {
        check(&batch, "planned batch", false);
    }
}

#[test]
#[ignore = "needs RETORT_MINILM; prints speeds"]
fn speed() {
    let tower = tower();
    let rows: Vec<Vec<u32>> =
        (0..32u32).map(|r| (0..128).map(|i| 1000 + (r * 977 + i * 131) % 29_000).collect()).collect();
    let measure = |name: &str, batch: &Batch, run: &dyn Fn(&Batch)| {
        run(batch);
        let mut seconds: Vec<f64> = (0..5)
            .map(|_| {
                let start = Instant::now();
                run(batch);
                start.elapsed().as_secs_f64()
            })
            .collect();
        seconds.sort_by(f64::total_cmp);
        let rows = batch.rows() as f64;
        eprintln!("{name}: {:.1} passages/s (best {:.1})", rows / seconds[2], rows / seconds[0]);
    };
    let batch = |count: usize, shorten: usize| {
        let rows: Vec<&[u32]> =
            rows[..count].iter().enumerate().map(|(i, r)| &r[..128 - i * shorten]).collect();
        Batch::Tokens(TokenBatch::new(&rows, 0))
    };
    measure("encode 32 x 128", &batch(32, 0), &|b| drop(tower.encode(b).unwrap()));
    measure("encode 32 x 128, padded", &batch(32, 1), &|b| drop(tower.encode(b).unwrap()));
    measure("forward and backward 16 x 128", &batch(16, 0), &|b| {
        let forward = tower.forward(b).unwrap();
        let gradient = forward.vectors.clone();
        drop(forward.backward(&gradient));
    });
    let start = Instant::now();
    let print = probe(&Device::flex());
    eprintln!("probe {print} in {:.3} s", start.elapsed().as_secs_f64());
}

/// What `tests/parity/models.py` writes beside a model.
#[derive(serde::Deserialize)]
struct Wanted {
    max_length: usize,
    #[serde(default)]
    texts: Vec<String>,
    #[serde(default)]
    vectors: Vec<Vec<f32>>,
    #[serde(default)]
    pooling: Pooling,
    #[serde(default)]
    normalize: bool,
    #[serde(default)]
    pairs: Vec<(String, String)>,
    #[serde(default)]
    scores: Vec<f32>,
}

fn largest<'a>(found: impl Iterator<Item = (&'a f32, &'a f32)>) -> f32 {
    found.map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

#[test]
#[ignore = "needs RETORT_MODELS, which tests/parity/models.py writes"]
fn architectures_agree_with_transformers() {
    let root = PathBuf::from(std::env::var_os("RETORT_MODELS").expect("RETORT_MODELS names a folder"));
    let mut folders: Vec<_> = std::fs::read_dir(&root).unwrap().map(|entry| entry.unwrap().path()).collect();
    folders.sort();
    assert!(!folders.is_empty());
    for folder in folders {
        let name = folder.file_name().unwrap().to_string_lossy().into_owned();
        let wanted: Wanted =
            serde_json::from_slice(&std::fs::read(folder.join("reference.json")).unwrap()).unwrap();
        let difference = if wanted.pairs.is_empty() {
            check_retriever(&folder, &wanted)
        } else {
            check_cross(&folder, &wanted)
        };
        eprintln!("{name}: largest difference {difference:e}");
        assert!(difference < 1e-5, "{name}");
    }
}

fn check_cross(folder: &std::path::Path, wanted: &Wanted) -> f32 {
    let cross = CrossEncoder::load(&folder.join("model"), &Device::flex()).unwrap();
    let pairs: Vec<(&str, &str)> = wanted.pairs.iter().map(|(a, b)| (a.as_str(), b.as_str())).collect();
    let scores = cross.score(&pairs, wanted.max_length, 2048, 2, |_| Ok::<_, CrossError>(())).unwrap();
    largest(scores.iter().zip(&wanted.scores))
}

/// Compares the vectors, and writes the model again as `export` with our vectors beside it.
fn check_retriever(folder: &std::path::Path, wanted: &Wanted) -> f32 {
    let source = folder.join("model");
    let (encoder, params, stack) = load_retriever(&source).unwrap();
    let pooling = wanted.pooling;
    let settings = encoder_folder(&source).unwrap();
    let tokenizer = Tokenizer::open(&settings, encoder.vocabulary_size).unwrap();
    let pad = encoder.pad_token_id;
    let ids = tokenizer.encode_all(&wanted.texts, wanted.max_length, 1).unwrap();
    let input = Input::Tokens { encoder: encoder.clone(), pooling };
    let tower = Tower::new(TowerConfig { input, head: Head::None }, &params, &Device::flex()).unwrap();
    let rows: Vec<&[u32]> = ids.iter().map(Vec::as_slice).collect();
    let mut vectors = stack.apply(tower.encode(&Batch::Tokens(TokenBatch::new(&rows, pad))).unwrap());
    if wanted.normalize {
        vectors.normalize_rows();
    }
    let ours: Vec<&[f32]> = (0..vectors.rows()).map(|row| vectors.row(row)).collect();
    let export = folder.join("export");
    let _ = std::fs::remove_dir_all(&export);
    std::fs::create_dir_all(&export).unwrap();
    let json = folder.join("tokenizer.json");
    std::fs::write(&json, Tokenizer::json(&settings).unwrap()).unwrap();
    let special = SpecialTokens::of_folder(&settings, &json).unwrap();
    let chain = Chain {
        encoder: &encoder,
        params: &params,
        pooling,
        layers: stack.layers.clone(),
        normalize: wanted.normalize,
        tokenizer: &json,
        special: &special,
        max_tokens: wanted.max_length,
    };
    let ours = if folder.ends_with("dpr-question") {
        // Both branches of the router are this model: the branches' own files are what is checked.
        write_router(&export, &chain, &chain, ["", ""]).unwrap();
        serde_json::json!({ "vectors": ours, "queries": ours })
    } else {
        write_shared(&export, &chain, ["", ""]).unwrap();
        serde_json::json!({ "vectors": ours })
    };
    std::fs::write(folder.join("ours.json"), ours.to_string()).unwrap();
    largest((0..vectors.rows()).flat_map(|row| vectors.row(row).iter().zip(&wanted.vectors[row])))
}
