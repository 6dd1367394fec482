//! Retort's search and quantisers on vectors from files, one command a line on standard input: what
//! tests/parity/search.py holds against faiss and bm25s, for speed and for results.
//!
//! `search_peer FOLDER DIM THREADS` reads passages.f32 and queries.f32 (little-endian rows of DIM values), docs.txt and
//! questions.txt. Every command prints one JSON object with the seconds that it took; ranked lists go to
//! FOLDER/COMMAND.u64, K rows for each question. Training commands take a seed as their last number, 1 without.

#![allow(clippy::print_stdout, reason = "its output is its purpose")]

use retort_worker::fit::kmeans::{MOST_ROWS, ROUNDS};
use retort_worker::fit::{
    AffineMap, BinaryQuantizer, Code, Codes, Int8Quantizer, PcaAccumulator, ProductQuantizer, Quantizer,
    ResidualQuantizer, opq, train_opq,
};
use retort_worker::matrix::Matrix;
use retort_worker::search::bm25::{Bm25, CorpusStatistics, Questions, ShardIndex};
use retort_worker::search::codes::CodeQueries;
use retort_worker::search::dense::Queries;
use retort_worker::search::topk::{Hit, TopK};
use std::error::Error;
use std::io::BufRead;
use std::path::PathBuf;
use std::time::Instant;

type Outcome<T> = Result<T, Box<dyn Error>>;

struct Peer {
    folder: PathBuf,
    threads: usize,
    passages: Matrix,
    queries: Matrix,
    quantizer: Option<Quantizer>,
    codes: Codes,
    index: Option<(ShardIndex, CorpusStatistics)>,
}

fn main() -> Outcome<()> {
    let mut args = std::env::args().skip(1);
    let mut next = |what: &str| args.next().ok_or(format!("usage: search_peer FOLDER DIM THREADS ({what})"));
    let (folder, dim, threads) =
        (PathBuf::from(next("FOLDER")?), next("DIM")?.parse()?, next("THREADS")?.parse()?);
    let read = |name: &str| -> Outcome<Matrix> {
        let Ok(bytes) = std::fs::read(folder.join(name)) else { return Ok(Matrix::zeros(0, dim)) };
        let values: Vec<f32> =
            bytes.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
        Ok(Matrix::new(values.len() / dim, dim, values))
    };
    let (passages, queries) = (read("passages.f32")?, read("queries.f32")?);
    let mut peer =
        Peer { folder, threads, passages, queries, quantizer: None, codes: Codes::default(), index: None };
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        let words: Vec<&str> = line.split_whitespace().collect();
        let start = Instant::now();
        let answer = peer.run(&words)?;
        let mut seconds = start.elapsed().as_secs_f64();
        if let Some(lists) = answer {
            seconds = start.elapsed().as_secs_f64();
            peer.write(words[0], &lists)?;
        }
        println!("{{\"seconds\": {seconds}}}");
    }
    Ok(())
}

impl Peer {
    fn run(&mut self, words: &[&str]) -> Outcome<Option<Vec<Vec<Hit>>>> {
        let number =
            |at: usize| -> Outcome<usize> { Ok(words.get(at).ok_or("a number is missing")?.parse()?) };
        let seed = |at: usize| -> Outcome<u64> { Ok(words.get(at).map_or(Ok(1), |word| word.parse())?) };
        match words {
            ["flat", ..] => self.flat(&self.queries, &self.passages, number(1)?).map(Some),
            ["pca", ..] => {
                let map = self.pca(number(2)?)?;
                let (queries, passages) =
                    (map.apply(&self.queries, self.threads), map.apply(&self.passages, self.threads));
                self.flat(&queries, &passages, number(1)?).map(Some)
            }
            ["pq-train", ..] => {
                let pq = self.train_pq(&self.sample(), number(1)?, seed(2)?)?;
                self.quantizer = Some(Quantizer { map: None, code: Code::Product(pq) });
                Ok(None)
            }
            ["opq-train", ..] => {
                let (map, pq) = train_opq(&self.sample(), number(1)?, opq::ROUNDS, seed(2)?, self.threads)?;
                self.quantizer = Some(Quantizer { map: Some(map), code: Code::Product(pq) });
                Ok(None)
            }
            ["pca-pq-train", ..] => {
                let map = self.pca(number(1)?)?;
                let pq = self.train_pq(&map.apply(&self.sample(), self.threads), number(2)?, seed(3)?)?;
                self.quantizer = Some(Quantizer { map: Some(map), code: Code::Product(pq) });
                Ok(None)
            }
            ["residual-train", ..] => {
                let residual = ResidualQuantizer::train(&self.sample(), number(1)?, seed(2)?, self.threads)?;
                self.quantizer = Some(Quantizer { map: None, code: Code::Residual(residual) });
                Ok(None)
            }
            ["int8-train"] => {
                let code = Code::Int8(Int8Quantizer::train(&self.sample())?);
                self.quantizer = Some(Quantizer { map: None, code });
                Ok(None)
            }
            ["binary-train"] => {
                let code = Code::Binary(BinaryQuantizer::train(&self.sample())?);
                self.quantizer = Some(Quantizer { map: None, code });
                Ok(None)
            }
            ["encode"] => {
                self.codes = self.quantizer()?.encode(&self.passages, self.threads)?;
                Ok(None)
            }
            ["decode"] => {
                let decoded = self.quantizer()?.decode(&self.codes)?;
                let bytes: Vec<u8> = decoded.data().iter().flat_map(|x| x.to_le_bytes()).collect();
                std::fs::write(self.folder.join("decoded.f32"), bytes)?;
                let mapped = self.quantizer()?.mapped(&self.passages, self.threads)?;
                let bytes: Vec<u8> = mapped.data().iter().flat_map(|x| x.to_le_bytes()).collect();
                std::fs::write(self.folder.join("mapped.f32"), bytes)?;
                Ok(None)
            }
            ["codes", ..] => {
                let mut top = TopK::new(self.queries.rows(), number(1)?);
                let queries = CodeQueries::new(self.quantizer()?, &self.queries, self.threads)?;
                queries.search(&self.codes, 0, self.threads, &mut top)?;
                Ok(Some(top.into_ranked()))
            }
            ["bm25-index"] => {
                let text = std::fs::read_to_string(self.folder.join("docs.txt"))?;
                let texts: Vec<&str> = text.lines().collect();
                let index = ShardIndex::build(0, &texts, self.threads)?;
                let statistics = index.statistics();
                self.index = Some((index, statistics));
                Ok(None)
            }
            ["bm25-search", ..] => {
                let text = std::fs::read_to_string(self.folder.join("questions.txt"))?;
                let (index, statistics) = self.index.as_ref().ok_or("bm25-index comes first")?;
                let parameters = Bm25 { k1: 1.5, b: 0.75 };
                let texts: Vec<&str> = text.lines().collect();
                let mut top = TopK::new(texts.len(), number(1)?);
                index.search(statistics, parameters, &Questions::new(&texts), self.threads, &mut top)?;
                Ok(Some(top.into_ranked()))
            }
            _ => Err(format!("no such command: {}", words.join(" ")).into()),
        }
    }

    fn flat(&self, queries: &Matrix, passages: &Matrix, k: usize) -> Outcome<Vec<Vec<Hit>>> {
        let mut top = TopK::new(queries.rows(), k);
        Queries::new(queries).search(passages, 0, self.threads, &mut top)?;
        Ok(top.into_ranked())
    }

    fn sample(&self) -> Matrix {
        let (rows, dim) = (self.passages.rows().min(MOST_ROWS), self.passages.dim());
        Matrix::new(rows, dim, self.passages.data()[..rows * dim].to_vec())
    }

    fn pca(&self, dims: usize) -> Outcome<AffineMap> {
        let mut sums = PcaAccumulator::new(self.passages.dim());
        sums.add(&self.passages)?;
        Ok(sums.finish()?.map(dims, false, false)?)
    }

    fn train_pq(&self, vectors: &Matrix, bytes: usize, seed: u64) -> Outcome<ProductQuantizer> {
        Ok(ProductQuantizer::train(vectors, bytes, None, ROUNDS, seed, self.threads)?)
    }

    fn quantizer(&self) -> Outcome<&Quantizer> {
        Ok(self.quantizer.as_ref().ok_or("train a quantiser first")?)
    }

    /// Rows and scores; lists that are shorter than the longest end in the largest row number.
    fn write(&self, name: &str, lists: &[Vec<Hit>]) -> Outcome<()> {
        let k = lists.iter().map(Vec::len).max().unwrap_or(0);
        let (mut rows, mut scores) = (Vec::new(), Vec::new());
        for list in lists {
            for at in 0..k {
                let hit = list.get(at).copied().unwrap_or(Hit { row: u64::MAX, score: f32::NEG_INFINITY });
                rows.extend(hit.row.to_le_bytes());
                scores.extend(hit.score.to_le_bytes());
            }
        }
        std::fs::write(self.folder.join(format!("{name}.u64")), rows)?;
        std::fs::write(self.folder.join(format!("{name}.scores")), scores)?;
        Ok(())
    }
}
