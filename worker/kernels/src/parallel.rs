//! How rows are dealt to threads. A cut never changes a result: tasks write disjoint rows, and sums over rows are taken
//! in blocks of a fixed size.

use rayon::prelude::*;

/// Values that are worth a task of their own.
const TASK_VALUES: usize = 1 << 15;

/// Calls `run` with consecutive blocks of whole rows of `data` and the number of each block's first row.
pub fn for_rows(data: &mut [f32], width: usize, run: impl Fn(usize, &mut [f32]) + Sync) {
    if data.is_empty() {
        return;
    }
    let rows = (TASK_VALUES / width).max(1);
    if data.len() <= rows * width || rayon::current_num_threads() == 1 {
        data.chunks_mut(rows * width).enumerate().for_each(|(block, data)| run(block * rows, data));
    } else {
        data.par_chunks_mut(rows * width).enumerate().for_each(|(block, data)| run(block * rows, data));
    }
}

/// Runs tasks, on several threads where there are some.
pub fn for_each<T: Send>(tasks: Vec<T>, run: impl Fn(T) + Sync + Send) {
    if tasks.len() < 2 || rayon::current_num_threads() == 1 {
        tasks.into_iter().for_each(run);
    } else {
        tasks.into_par_iter().for_each(run);
    }
}

/// Rows that are summed together before the sums are summed.
const SUM_ROWS: usize = 256;

/// Adds to `sums` what `run` adds to zeros for each block of [`SUM_ROWS`] rows, in the order of the blocks.
pub fn sum_blocks(rows: usize, sums: &mut [f32], run: impl Fn(std::ops::Range<usize>, &mut [f32]) + Sync) {
    let blocks = rows.div_ceil(SUM_ROWS);
    let partial = |block: usize| {
        let mut partial = vec![0.0; sums.len()];
        run(block * SUM_ROWS..rows.min((block + 1) * SUM_ROWS), &mut partial);
        partial
    };
    let partials: Vec<Vec<f32>> = if blocks < 2 || rayon::current_num_threads() == 1 {
        (0..blocks).map(partial).collect()
    } else {
        (0..blocks).into_par_iter().map(partial).collect()
    };
    for partial in partials {
        sums.iter_mut().zip(partial).for_each(|(sum, value)| *sum += value);
    }
}
