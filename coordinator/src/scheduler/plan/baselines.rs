//! Rows of PCA and quantisers, on the teacher's or a student's vectors.

use super::{Base, PlanError, Planner, derived_seed};
use retort_common::spec::baselines::{Method, row_name};
use retort_common::task::{
    ArtifactId, CodesSource, DenseSource, PcaReduction, QuantizerMethod, ReportRow, Retriever, RowVariant,
    Task, VectorSet,
};
use std::collections::BTreeSet;

/// Centroids of a codebook: no fewer passages can train one.
const CENTROIDS: u64 = 256;

/// What one row is made from.
struct Source<'a> {
    vectors: &'a VectorSet,
    dim: u32,
}

impl Planner<'_, '_> {
    /// The teacher's: those asked for, and PCA at the students' dimensions, so that each has its rival.
    pub(super) fn teacher_baselines(
        &mut self,
        base: &Base,
        dim: u32,
        pca_dims: &BTreeSet<u32>,
    ) -> Result<Vec<ReportRow>, PlanError> {
        let spec = &self.context.spec.baselines;
        let asked = spec.on.iter().any(|source| source == "teacher");
        let mut methods: Vec<(String, Method)> =
            pca_dims.iter().map(|dim| (format!("pca-{dim}"), Method::Pca { dim: *dim })).collect();
        if asked {
            let named: BTreeSet<String> = methods.iter().map(|(name, _)| name.clone()).collect();
            methods.extend(spec.rows().into_iter().filter(|(name, _)| !named.contains(name)));
        }
        let source = Source { vectors: &base.teacher, dim };
        methods.into_iter().map(|(name, method)| self.baseline(base, &source, name, method)).collect()
    }

    /// A student's, once its dimension is known.
    pub(super) fn student_baselines(
        &mut self,
        base: &Base,
        student: &str,
        vectors: &VectorSet,
    ) -> Result<Vec<ReportRow>, PlanError> {
        let spec = &self.context.spec.baselines;
        let Some(first) = vectors.passages.first().filter(|_| spec.on.iter().any(|on| on == student)) else {
            return Ok(Vec::new());
        };
        let Some(dim) = self.number(first, "dim")?.and_then(|dim| u32::try_from(dim).ok()) else {
            return Ok(Vec::new());
        };
        let source = Source { vectors, dim };
        // PCA that a student's vectors are too short for is left out; it was asked for the longer ones.
        let fits = |method: &Method| match method {
            Method::Pca { dim: reduced } | Method::Product { pca: Some(reduced), .. } => *reduced <= dim,
            _ => true,
        };
        let rows = spec.rows().into_iter().filter(|(_, method)| fits(method));
        rows.map(|(name, method)| self.baseline(base, &source, row_name(student, &name), method)).collect()
    }

    fn baseline(
        &mut self,
        base: &Base,
        source: &Source<'_>,
        name: String,
        method: Method,
    ) -> Result<ReportRow, PlanError> {
        check(&name, method, source.dim, base.passages.rows)?;
        let variants = match method {
            Method::Pca { dim } => self.pca_variants(base, source, &name, dim),
            Method::Product { pca: None, rotation, bytes } => {
                let quantizer =
                    self.fit_baseline(base, source, None, QuantizerMethod::Product { bytes, rotation });
                self.codebook_variants(base, source, (&name, ""), &quantizer)
            }
            Method::Product { pca: Some(dim), rotation, bytes } => {
                let pca = self.fit_pca(base, source.vectors);
                let [centred, renormalised] = [false, true].map(|renormalize| {
                    let reduce = PcaReduction { pca: pca.clone(), dim, whiten: false, renormalize };
                    let method = QuantizerMethod::Product { bytes, rotation };
                    self.fit_baseline(base, source, Some(reduce), method)
                });
                let mut variants = self.codebook_variants(base, source, (&name, "centred"), &centred);
                variants.push(self.codes_variant(
                    base,
                    source,
                    (&name, "renormalised"),
                    &renormalised,
                    false,
                ));
                variants
            }
            Method::Residual { bytes } => {
                let quantizer = self.fit_baseline(base, source, None, QuantizerMethod::Residual { bytes });
                self.codebook_variants(base, source, (&name, ""), &quantizer)
            }
            Method::Int8 => {
                let quantizer = self.fit_baseline(base, source, None, QuantizerMethod::Int8);
                vec![self.codes_variant(base, source, (&name, ""), &quantizer, false)]
            }
            Method::Binary => {
                let quantizer = self.fit_baseline(base, source, None, QuantizerMethod::Binary);
                [("asymmetric", false), ("hamming", true)]
                    .map(|(variant, hamming)| {
                        self.codes_variant(base, source, (&name, variant), &quantizer, hamming)
                    })
                    .into()
            }
        };
        let (kind, dim, bytes) = match method {
            Method::Pca { dim } => ("pca", dim, 4.0 * f64::from(dim)),
            Method::Product { pca, rotation, bytes } => {
                (if rotation { "opq" } else { "pq" }, pca.unwrap_or(source.dim), f64::from(bytes))
            }
            Method::Residual { bytes } => ("residual", source.dim, f64::from(bytes)),
            Method::Int8 => ("int8", source.dim, f64::from(source.dim)),
            Method::Binary => ("binary", source.dim, f64::from(source.dim.div_ceil(8))),
        };
        let (kind, dim) = (kind.to_owned(), Some(dim));
        Ok(ReportRow { name, kind, dim, bytes_per_passage: bytes, variants, export: None })
    }

    fn pca_variants(&mut self, base: &Base, source: &Source<'_>, name: &str, dim: u32) -> Vec<RowVariant> {
        let spec = self.context.spec;
        let (pca, mut variants) = (self.fit_pca(base, source.vectors), Vec::new());
        for (variant, whiten, renormalize) in
            [("centred", false, false), ("renormalised", false, true), ("whitened", true, true)]
        {
            let reduce = PcaReduction { pca: pca.clone(), dim, whiten, renormalize };
            let sets = spec.sets.judged();
            let run = self.search_dense(base, source.vectors, Some(&reduce), &sets, spec.evaluate.depth);
            let dense = DenseSource { vectors: source.vectors.clone(), reduce: Some(reduce), codes: None };
            variants.push(self.variant(base, name, variant, run, Some(dense)));
        }
        variants
    }

    /// Codes as they are, and, where vectors have unit length, what they stand for at unit length: quantised students are
    /// scored so, too. What a code after PCA stands for is led back through the map first, so that it may not renormalise.
    fn codebook_variants(
        &mut self,
        base: &Base,
        source: &Source<'_>,
        (row, plain): (&str, &str),
        quantizer: &ArtifactId,
    ) -> Vec<RowVariant> {
        let spec = self.context.spec;
        let mut variants = vec![self.codes_variant(base, source, (row, plain), quantizer, false)];
        if self.normalizes() {
            let passages = self.quantize(quantizer, &source.vectors.passages, true, &base.fingerprint);
            let vectors = VectorSet { passages, ..source.vectors.clone() };
            let run = self.search_dense(base, &vectors, None, &spec.sets.judged(), spec.evaluate.depth);
            let dense = DenseSource { vectors, reduce: None, codes: None };
            variants.push(self.variant(base, row, "unit-length", run, Some(dense)));
        }
        variants
    }

    fn fit_baseline(
        &mut self,
        base: &Base,
        source: &Source<'_>,
        reduce: Option<PcaReduction>,
        method: QuantizerMethod,
    ) -> ArtifactId {
        self.add(Task::FitBaseline {
            vectors: source.vectors.passages.clone(),
            reduce,
            method,
            seed: derived_seed(self.context.spec.seed, "quantizer", 0),
            fingerprint: base.fingerprint.clone(),
        })
    }

    fn codes_variant(
        &mut self,
        base: &Base,
        source: &Source<'_>,
        (row, variant): (&str, &str),
        quantizer: &ArtifactId,
        hamming: bool,
    ) -> RowVariant {
        let codes = self.encode_codes(quantizer, &source.vectors.passages, &base.fingerprint);
        let run = self.search_codes(base, &source.vectors.queries, quantizer, &codes, hamming);
        let dense = DenseSource {
            vectors: source.vectors.clone(),
            reduce: None,
            codes: Some(CodesSource { quantizer: quantizer.clone(), codes, hamming }),
        };
        self.variant(base, row, variant, run, Some(dense))
    }

    /// What the codes of passages stand for, shard by shard; with `normalize` at unit length.
    pub(super) fn quantize(
        &mut self,
        quantizer: &ArtifactId,
        passages: &[ArtifactId],
        normalize: bool,
        fingerprint: &str,
    ) -> Vec<ArtifactId> {
        let task = |vectors: &ArtifactId| Task::Quantize {
            quantizer: quantizer.clone(),
            vectors: vectors.clone(),
            normalize,
            fingerprint: fingerprint.to_owned(),
        };
        passages.iter().map(|vectors| self.add(task(vectors))).collect()
    }

    /// Codes of vectors, shard by shard.
    pub(super) fn encode_codes(
        &mut self,
        quantizer: &ArtifactId,
        vectors: &[ArtifactId],
        fingerprint: &str,
    ) -> Vec<ArtifactId> {
        let task = |vectors: &ArtifactId| Task::Encode {
            quantizer: quantizer.clone(),
            vectors: vectors.clone(),
            fingerprint: fingerprint.to_owned(),
        };
        vectors.iter().map(|vectors| self.add(task(vectors))).collect()
    }

    /// The judged questions against codes.
    pub(super) fn search_codes(
        &mut self,
        base: &Base,
        queries: &[ArtifactId],
        quantizer: &ArtifactId,
        codes: &[ArtifactId],
        hamming: bool,
    ) -> ArtifactId {
        let spec = self.context.spec;
        let retriever = |group: &[ArtifactId]| Retriever::Codes {
            queries: queries.to_vec(),
            quantizer: quantizer.clone(),
            codes: group.to_vec(),
            hamming,
            rerank: None,
        };
        self.search_groups(base, codes, retriever, &spec.sets.judged(), spec.evaluate.depth)
    }
}

/// Whether a method fits vectors of `dim` dimensions of so many passages.
fn check(row: &str, method: Method, dim: u32, passages: u64) -> Result<(), PlanError> {
    let fail = |why: String| Err(PlanError::Baseline { row: row.to_owned(), why });
    let reduced = match method {
        Method::Pca { dim } | Method::Product { pca: Some(dim), .. } => Some(dim),
        _ => None,
    };
    if let Some(reduced) = reduced.filter(|reduced| *reduced > dim) {
        return fail(format!("{reduced} is more than the vectors' {dim} dimensions; take fewer"));
    }
    if let Method::Product { bytes, .. } = method {
        let dim = reduced.unwrap_or(dim);
        if bytes == 0 || !dim.is_multiple_of(bytes) {
            return fail(format!("{bytes} sub-quantisers do not divide {dim} dimensions; take a divisor"));
        }
    }
    let has_codebooks = matches!(method, Method::Product { .. } | Method::Residual { .. });
    if has_codebooks && passages < CENTROIDS {
        return fail(format!("{passages} passages cannot train 256 centroids; leave it out"));
    }
    Ok(())
}
