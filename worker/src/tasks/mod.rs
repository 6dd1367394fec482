//! The tasks: each a function from artifacts and files to the parts and the numbers of one artifact.
//!
//! - [`Workbench`]: what every task works with
//! - [`input`]: files outside the store, verified while they are read
//! - [`shard`], [`embed`], [`fit`], [`baseline`], [`quantize`], [`search`], [`mine`], [`score`], [`denoise`],
//!   [`order`], [`train`], [`evaluate`], [`export`], [`report`]: the tasks themselves
//! - [`student`]: a trained student as an artifact; [`pairs`]: scores of single pairs, by row

pub(crate) mod baseline;
mod bench;
mod denoise;
mod embed;
mod evaluate;
mod export;
pub(crate) mod fit;
mod input;
pub(crate) mod mine;
mod order;
mod pairs;
mod quantize;
mod report;
mod score;
pub(crate) mod search;
mod shard;
mod student;
mod train;

pub(crate) use bench::VECTORS;
pub use bench::{Content, Produced, Progress, Seat, TaskError, Workbench};
pub use embed::EncoderCache;

use retort_common::task::Task;

/// Runs a task to its output.
pub fn run(bench: &Workbench<'_>, task: &Task) -> Result<Produced, TaskError> {
    match task {
        Task::ShardCorpus { .. } => shard::corpus(bench, task),
        Task::ShardQueries { .. } => shard::queries(bench, task),
        Task::ShardSentences { passages, count, rows_per_shard, seed } => {
            let draw =
                shard::Draw { count: *count as usize, rows_per_shard: *rows_per_shard as usize, seed: *seed };
            shard::sentences(bench, passages, draw)
        }
        Task::Embed { .. } => embed::embed(bench, task),
        Task::Project { student, vectors, normalize, .. } => {
            embed::project(bench, student, vectors, *normalize)
        }
        Task::FitPca { vectors, .. } => fit::pca(bench, vectors),
        Task::FitQuantizer { .. } => quantize::fit(bench, task),
        Task::FitBaseline { .. } => baseline::fit(bench, task),
        Task::Encode { quantizer, vectors, .. } => baseline::encode(bench, quantizer, vectors),
        Task::Quantize { .. } => quantize::quantize(bench, task),
        Task::FitBm25 { passages } => fit::bm25(bench, passages),
        Task::Search { .. } => search::search(bench, task),
        Task::Merge { runs, depth } => search::merge(bench, runs, *depth),
        Task::Mine { .. } => mine::mine(bench, task),
        Task::Score { .. } => score::score(bench, task),
        Task::Denoise { .. } => denoise::denoise(bench, task),
        Task::Order { .. } => order::order(bench, task),
        Task::Train { .. } => train::train(bench, task),
        Task::Evaluate { .. } => evaluate::evaluate(bench, task),
        Task::ExportStudent { .. } => export::student(bench, task),
        Task::ExportRun { .. } => export::run(bench, task),
        Task::Report { .. } => report::report(bench, task),
    }
}
