//! Scans of quantised passages.
//!
//! Questions stay as they are (asymmetric distances, Jégou et al. 2011): a passage's score is the inner product of
//! the mapped question with the vector that the passage's code stands for. For product and binary codes it is a sum
//! of table entries, one for each byte of the code, added in the order of the bytes. Tables of several questions
//! lie beside each other, so that one vector addition serves all of them; a score has the same bits alone.

use pulp::{Arch, Simd, WithSimd};

use super::dense::{DenseError, Passages, Queries};
use super::topk::{Best, Hit, TopK, TopKError};
use crate::fit::scalar::hamming;
use crate::fit::{Code, Codes, Quantizer, QuantizerError};
use crate::matrix::Matrix;
use crate::parallel;

/// Passages that a thread scores between two looks at the thresholds.
const BLOCK_ROWS: usize = 256;
/// Passages that a thread takes at a time where there are fewer groups of questions than threads.
const PART_ROWS: usize = 16 * 1024;
/// Entries of a table: a byte's values.
const ENTRIES: usize = 256;

/// Why codes cannot be searched.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum CodesError {
    /// Codes or questions that are not the quantiser's.
    #[error(transparent)]
    Quantizer(#[from] QuantizerError),
    /// Shapes or scores that a search refuses.
    #[error(transparent)]
    Search(#[from] DenseError),
    /// Distances that this code does not have.
    #[error("hamming distances need binary codes")]
    NotBinary,
}

/// Questions ready to be held against codes.
pub struct CodeQueries<'a> {
    quantizer: &'a Quantizer,
    rows: usize,
    tables: Tables,
}

enum Tables {
    /// [groups, bytes, 256, lanes] for product and binary codes.
    Sums { lanes: usize, values: Vec<f32> },
    /// Packed mapped questions, for codes that are decoded.
    Decoded(Queries),
    /// The questions' own bits.
    Bits(Codes),
}

impl<'a> CodeQueries<'a> {
    /// Prepares questions [queries, input] for asymmetric scores.
    ///
    /// # Errors
    /// When they are not of the quantiser's dimensions, or not finite.
    pub fn new(quantizer: &'a Quantizer, queries: &Matrix, threads: usize) -> Result<Self, CodesError> {
        let mapped = quantizer.mapped(queries, threads)?;
        let rows = mapped.rows();
        if matches!(quantizer.code, Code::Int8(_)) {
            return Ok(Self { quantizer, rows, tables: Tables::Decoded(Queries::new(&mapped)) });
        }
        let lanes = lanes().min(rows.next_power_of_two());
        let group = quantizer.bytes() * ENTRIES * lanes;
        let mut values = vec![0.0; rows.div_ceil(lanes) * group];
        parallel::for_each_chunk(threads, &mut values, group, |at, values| {
            for (lane, row) in (at * lanes..rows.min((at + 1) * lanes)).enumerate() {
                let table = quantizer.tables(mapped.row(row)).expect("only int8 has none");
                values.iter_mut().skip(lane).step_by(lanes).zip(table).for_each(|(to, from)| *to = from);
            }
        });
        Ok(Self { quantizer, rows, tables: Tables::Sums { lanes, values } })
    }

    /// Prepares questions [queries, input] for Hamming distances: scores are the bits that agree less those that
    /// differ.
    ///
    /// # Errors
    /// As [`new`](Self::new), and when the quantiser is not binary.
    pub fn hamming(quantizer: &'a Quantizer, queries: &Matrix, threads: usize) -> Result<Self, CodesError> {
        if !matches!(quantizer.code, Code::Binary(_)) {
            return Err(CodesError::NotBinary);
        }
        let codes = quantizer.encode(queries, threads)?;
        Ok(Self { quantizer, rows: codes.rows(), tables: Tables::Bits(codes) })
    }

    /// Offers to `top` the scores of `codes`, whose rows are numbered from `first_row`, on at most `threads` threads
    /// (0 counts as 1).
    ///
    /// # Errors
    /// When the codes are not the quantiser's, the shapes do not fit, or a score is `NaN`.
    pub fn search(
        &self,
        codes: &Codes,
        first_row: u64,
        threads: usize,
        top: &mut TopK,
    ) -> Result<(), CodesError> {
        self.quantizer.check_codes(codes)?;
        if self.rows != top.queries() {
            return Err(DenseError::Queries { queries: self.rows, accumulators: top.queries() }.into());
        }
        if first_row.checked_add(codes.rows() as u64).is_none() {
            return Err(DenseError::Rows { first_row, passages: codes.rows() }.into());
        }
        match &self.tables {
            Tables::Decoded(queries) => {
                let passages = Decoded { quantizer: self.quantizer, codes };
                queries.search(&passages, first_row, threads, top)?;
            }
            Tables::Sums { lanes, values } => {
                let group = self.quantizer.bytes() * ENTRIES * lanes;
                let scan = |at: usize, best: &mut [Best], rows: std::ops::Range<usize>| {
                    let tables = &values[at * group..][..group];
                    let first_query = at * lanes;
                    let scan = Scan { tables, lanes: *lanes, codes, rows, first_row, first_query, best };
                    Arch::new().dispatch(scan)
                };
                spread(top, *lanes, codes.rows(), threads, scan).map_err(DenseError::from)?;
            }
            Tables::Bits(bits) => {
                let scan = |query: usize, best: &mut [Best], rows: std::ops::Range<usize>| {
                    let (own, dim) = (bits.row(query), self.quantizer.dim() as i64);
                    for row in rows {
                        let score = (dim - 2 * i64::from(hamming(own, codes.row(row)))) as f32;
                        if score >= best[0].threshold() {
                            best[0].offer(Hit { row: first_row + row as u64, score });
                        }
                    }
                    Ok(())
                };
                spread(top, 1, codes.rows(), threads, scan).map_err(DenseError::from)?;
            }
        }
        Ok(())
    }
}

/// Questions' tables beside each other on this machine.
fn lanes() -> usize {
    struct Lanes;
    impl WithSimd for Lanes {
        type Output = usize;
        #[inline(always)]
        fn with_simd<S: Simd>(self, _: S) -> usize {
            S::F32_LANES
        }
    }
    Arch::new().dispatch(Lanes)
}

/// Calls `scan(group, its accumulators, passages)` for each group of questions on at most `threads` threads. Where
/// there are fewer groups than threads the passages are shared out too.
fn spread(
    top: &mut TopK,
    group: usize,
    passages: usize,
    threads: usize,
    scan: impl Fn(usize, &mut [Best], std::ops::Range<usize>) -> Result<(), TopKError> + Sync,
) -> Result<(), TopKError> {
    let groups = top.queries().div_ceil(group);
    if groups >= threads || passages <= PART_ROWS {
        let failures = std::sync::Mutex::new(Vec::new());
        parallel::for_each_chunk(threads, top.best_mut(), group, |at, best| {
            if let Err(error) = scan(at, best, 0..passages) {
                failures.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push((at, error));
            }
        });
        let mut failures = failures.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
        failures.sort_by_key(|(at, _)| *at);
        return failures.into_iter().next().map_or(Ok(()), |(_, error)| Err(error));
    }
    let shape = top.like();
    let parts = parallel::map(threads, passages.div_ceil(PART_ROWS), |part| {
        let rows = part * PART_ROWS..passages.min((part + 1) * PART_ROWS);
        let mut own = shape.clone();
        for (at, best) in own.best_mut().chunks_mut(group).enumerate() {
            scan(at, best, rows.clone())?;
        }
        Ok(own)
    });
    for part in parts {
        top.merge(part?)?;
    }
    Ok(())
}

/// Codes as the vectors that they stand for.
struct Decoded<'a> {
    quantizer: &'a Quantizer,
    codes: &'a Codes,
}

impl Passages for Decoded<'_> {
    fn rows(&self) -> usize {
        self.codes.rows()
    }

    fn dim(&self) -> usize {
        self.quantizer.dim()
    }

    fn read(&self, row: usize, vector: &mut [f32]) {
        self.quantizer.decode_row(self.codes.row(row), vector);
    }
}

/// One group of questions against some passages.
struct Scan<'a> {
    /// [bytes, 256, lanes].
    tables: &'a [f32],
    lanes: usize,
    codes: &'a Codes,
    rows: std::ops::Range<usize>,
    first_row: u64,
    first_query: usize,
    best: &'a mut [Best],
}

impl WithSimd for Scan<'_> {
    type Output = Result<(), TopKError>;

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> Result<(), TopKError> {
        if self.lanes != S::F32_LANES {
            return self.few();
        }
        let Self { tables, lanes, codes, rows, first_row, first_query, best } = self;
        let (tables, _) = S::as_simd_f32s(tables).0.as_chunks::<ENTRIES>();
        let bytes = codes.bytes();
        let mut scores = vec![0.0f32; BLOCK_ROWS * lanes];
        for start in rows.clone().step_by(BLOCK_ROWS) {
            let count = BLOCK_ROWS.min(rows.end - start);
            let block = &codes.data()[start * bytes..(start + count) * bytes];
            let mut sums = S::as_mut_simd_f32s(&mut scores).0.iter_mut();
            // Four passages at a time, so that additions do not wait for each other.
            let mut fours = block.chunks_exact(4 * bytes);
            for four in &mut fours {
                let (a, rest) = four.split_at(bytes);
                let (b, rest) = rest.split_at(bytes);
                let (c, d) = rest.split_at(bytes);
                let mut sum = [simd.splat_f32s(0.0); 4];
                for ((((table, a), b), c), d) in tables.iter().zip(a).zip(b).zip(c).zip(d) {
                    sum[0] = simd.add_f32s(sum[0], table[usize::from(*a)]);
                    sum[1] = simd.add_f32s(sum[1], table[usize::from(*b)]);
                    sum[2] = simd.add_f32s(sum[2], table[usize::from(*c)]);
                    sum[3] = simd.add_f32s(sum[3], table[usize::from(*d)]);
                }
                sum.iter().zip(&mut sums).for_each(|(sum, target)| *target = *sum);
            }
            for (code, target) in fours.remainder().chunks_exact(bytes).zip(&mut sums) {
                let zero = simd.splat_f32s(0.0);
                *target = tables
                    .iter()
                    .zip(code)
                    .fold(zero, |sum, (table, byte)| simd.add_f32s(sum, table[usize::from(*byte)]));
            }
            let row = first_row + start as u64;
            offer(simd, &scores[..count * lanes], row, first_query, best)?;
        }
        Ok(())
    }
}

impl Scan<'_> {
    /// Fewer questions than lanes: one after the other.
    fn few(self) -> Result<(), TopKError> {
        let Self { tables, lanes, codes, rows, first_row, first_query, best } = self;
        for (lane, best) in best.iter_mut().enumerate() {
            let table: Vec<f32> = tables.iter().skip(lane).step_by(lanes).copied().collect();
            let (table, _) = table.as_chunks::<ENTRIES>();
            for row in rows.clone() {
                let sum = |sum, (table, byte): (&[f32; ENTRIES], &u8)| sum + table[usize::from(*byte)];
                let score = table.iter().zip(codes.row(row)).fold(0.0, sum);
                let hit = Hit { row: first_row + row as u64, score };
                if score.is_nan() {
                    return Err(TopKError::NotANumber { query: first_query + lane, row: hit.row });
                }
                if score >= best.threshold() {
                    best.offer(hit);
                }
            }
        }
        Ok(())
    }
}

/// Offers scores [passages, lanes] of consecutive rows.
#[inline(always)]
fn offer<S: Simd>(
    simd: S,
    scores: &[f32],
    first_row: u64,
    first_query: usize,
    best: &mut [Best],
) -> Result<(), TopKError> {
    let lanes = S::F32_LANES;
    let mut thresholds = vec![f32::INFINITY; lanes];
    thresholds.iter_mut().zip(best.iter()).for_each(|(limit, best)| *limit = best.threshold());
    for (i, scores) in scores.chunks_exact(lanes).enumerate() {
        let below = simd.less_than_f32s(S::as_simd_f32s(scores).0[0], S::as_simd_f32s(&thresholds).0[0]);
        if simd.first_true_m32s(simd.not_m32s(below)) == lanes {
            continue;
        }
        let row = first_row + i as u64;
        for (lane, (score, best)) in scores.iter().zip(best.iter_mut()).enumerate() {
            if score.is_nan() {
                return Err(TopKError::NotANumber { query: first_query + lane, row });
            }
            if *score >= thresholds[lane] {
                best.offer(Hit { row, score: *score });
                thresholds[lane] = best.threshold();
            }
        }
    }
    Ok(())
}

/// Ranks each list again by the inner products of the questions with more precise vectors: `exact` gives the vectors of the listed rows, in their order.
///
/// # Errors
/// When `exact` fails or dimensions do not fit.
pub fn rerank(
    queries: &Matrix,
    lists: &[Vec<Hit>],
    k: usize,
    mut exact: impl FnMut(&[u64]) -> Result<Matrix, String>,
) -> Result<Vec<Vec<Hit>>, String> {
    let mut ranked = Vec::with_capacity(lists.len());
    for (query, hits) in lists.iter().enumerate() {
        let rows: Vec<u64> = hits.iter().map(|hit| hit.row).collect();
        let vectors = exact(&rows)?;
        let question = Matrix::new(1, queries.dim(), queries.row(query).to_vec());
        let mut top = TopK::new(1, rows.len());
        Queries::new(&question).search(&vectors, 0, 1, &mut top).map_err(|error| error.to_string())?;
        let mut hits: Vec<Hit> = top.into_ranked().pop().unwrap_or_default();
        hits.iter_mut().for_each(|hit| hit.row = rows[hit.row as usize]);
        hits.sort_by(Hit::rank_order);
        hits.truncate(k);
        ranked.push(hits);
    }
    Ok(ranked)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fit::{BinaryQuantizer, Int8Quantizer, ProductQuantizer};
    use crate::mining::counter;

    fn random(rows: usize, dim: usize, seed: u64) -> Matrix {
        let value = |i: usize| counter::unit(counter::hash(seed, &[i as u64])) as f32 - 0.5;
        Matrix::new(rows, dim, (0..rows * dim).map(value).collect())
    }

    fn quantizers(vectors: &Matrix) -> Vec<Quantizer> {
        let plain = |code| Quantizer { map: None, code };
        vec![
            plain(Code::Product(ProductQuantizer::train(vectors, 4, None, 3, 1, 1).unwrap())),
            plain(Code::Int8(Int8Quantizer::train(vectors).unwrap())),
            plain(Code::Binary(BinaryQuantizer::train(vectors).unwrap())),
        ]
    }

    fn search(
        quantizer: &Quantizer,
        queries: &Matrix,
        codes: &Codes,
        threads: usize,
        k: usize,
    ) -> Vec<Vec<Hit>> {
        let mut top = TopK::new(queries.rows(), k);
        let prepared = CodeQueries::new(quantizer, queries, threads).unwrap();
        prepared.search(codes, 5, threads, &mut top).unwrap();
        top.into_ranked()
    }

    #[test]
    fn scores_are_products_with_what_the_codes_stand_for() {
        let vectors = random(700, 12, 1);
        for quantizer in quantizers(&vectors) {
            let codes = quantizer.encode(&vectors, 1).unwrap();
            let decoded = quantizer.decode(&codes).unwrap();
            for count in [1, 3, 40] {
                let queries = random(count, 12, 2);
                let found = search(&quantizer, &queries, &codes, 1, 9);
                for (query, hits) in found.iter().enumerate() {
                    let product = |row: usize| -> f32 {
                        queries.row(query).iter().zip(decoded.row(row)).map(|(q, x)| q * x).sum()
                    };
                    let mut best: Vec<f32> = (0..700).map(product).collect();
                    best.sort_by(|a, b| b.total_cmp(a));
                    assert_eq!(hits.len(), 9);
                    for (hit, best) in hits.iter().zip(best) {
                        assert!(
                            (hit.score - best).abs() < 1e-5
                                && (product(hit.row as usize - 5) - best).abs() < 1e-5
                        );
                    }
                }
                // Threads, neighbours and more than all passages change nothing.
                assert_eq!(found, search(&quantizer, &queries, &codes, 3, 9));
                let alone = Matrix::new(1, 12, queries.row(count - 1).to_vec());
                assert_eq!(search(&quantizer, &alone, &codes, 1, 9)[0], found[count - 1]);
                assert_eq!(search(&quantizer, &alone, &codes, 1, 9000)[0].len(), 700);
            }
        }
    }

    #[test]
    fn many_passages_are_shared_out_between_threads() {
        let vectors = random(40_000, 4, 3);
        let quantizer = &quantizers(&random(300, 4, 4))[2];
        let codes = quantizer.encode(&vectors, 1).unwrap();
        let queries = random(1, 4, 5);
        assert_eq!(search(quantizer, &queries, &codes, 1, 20), search(quantizer, &queries, &codes, 4, 20));
    }

    #[test]
    fn hamming_counts_the_bits_that_agree() {
        let vectors = random(50, 20, 6);
        let all = quantizers(&vectors_of(300, 20));
        let quantizer = &all[2];
        let codes = quantizer.encode(&vectors, 1).unwrap();
        let queries = CodeQueries::hamming(quantizer, &vectors, 1).unwrap();
        let mut top = TopK::new(50, 50);
        queries.search(&codes, 0, 2, &mut top).unwrap();
        for (query, hits) in top.into_ranked().into_iter().enumerate() {
            assert_eq!(hits.len(), 50);
            for hit in hits {
                let differ = hamming(codes.row(query), codes.row(hit.row as usize));
                assert_eq!(hit.score, 20.0 - 2.0 * differ as f32);
            }
        }
        assert_eq!(CodeQueries::hamming(&all[0], &vectors, 1).err(), Some(CodesError::NotBinary));
    }

    fn vectors_of(rows: usize, dim: usize) -> Matrix {
        random(rows, dim, 8)
    }

    #[test]
    fn lists_are_ranked_again_by_exact_vectors() {
        let vectors = random(300, 12, 1);
        let quantizer = &quantizers(&vectors)[0];
        let codes = quantizer.encode(&vectors, 1).unwrap();
        let queries = random(4, 12, 2);
        let mut top = TopK::new(4, 300);
        CodeQueries::new(quantizer, &queries, 1).unwrap().search(&codes, 0, 1, &mut top).unwrap();
        let exact = |rows: &[u64]| {
            let data = rows.iter().flat_map(|row| vectors.row(*row as usize)).copied().collect();
            Ok(Matrix::new(rows.len(), 12, data))
        };
        let ranked = rerank(&queries, &top.into_ranked(), 7, exact).unwrap();
        let mut top = TopK::new(4, 7);
        Queries::new(&queries).search(&vectors, 0, 1, &mut top).unwrap();
        assert_eq!(ranked, top.into_ranked());
    }

    #[test]
    fn foreign_codes_and_accumulators_are_refused() {
        let vectors = random(300, 12, 1);
        let all = quantizers(&vectors);
        let codes = all[0].encode(&vectors, 1).unwrap();
        let queries = CodeQueries::new(&all[1], &vectors, 1).unwrap();
        let refused = |result: Result<(), CodesError>, text: &str| {
            assert!(result.unwrap_err().to_string().contains(text), "{text}");
        };
        refused(
            queries.search(&codes, 0, 1, &mut TopK::new(300, 1)),
            "12 bytes a passage and the codes have 4",
        );
        let own = all[1].encode(&vectors, 1).unwrap();
        refused(queries.search(&own, 0, 1, &mut TopK::new(2, 1)), "holds 2 queries");
        refused(queries.search(&own, u64::MAX, 1, &mut TopK::new(300, 1)), "largest row number");
        assert!(CodeQueries::new(&all[0], &random(2, 11, 1), 1).is_err());
    }
}
