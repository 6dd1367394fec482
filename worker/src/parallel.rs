//! Work on several threads whose result does not depend on how many they are.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

/// `[f(0), f(1), …, f(count - 1)]`, computed on at most `threads` threads (0 counts as 1). Each value must depend
/// on its number alone; then so does the result.
pub fn map<T: Send>(threads: usize, count: usize, f: impl Fn(usize) -> T + Sync) -> Vec<T> {
    let threads = threads.clamp(1, count.max(1));
    if threads == 1 {
        return (0..count).map(f).collect();
    }
    let next = AtomicUsize::new(0);
    let done = Mutex::new(Vec::with_capacity(count));
    let run = || {
        let mut own = Vec::new();
        loop {
            let at = next.fetch_add(1, Ordering::Relaxed);
            if at >= count {
                break;
            }
            own.push((at, f(at)));
        }
        // A poisoned lock only says that another thread panicked, and that panic is about to be raised again.
        done.lock().unwrap_or_else(std::sync::PoisonError::into_inner).append(&mut own);
    };
    std::thread::scope(|scope| {
        for _ in 1..threads {
            scope.spawn(run);
        }
        run();
    });
    let mut done = done.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    done.sort_unstable_by_key(|(at, _)| *at);
    done.into_iter().map(|(_, value)| value).collect()
}

/// Calls `f(i, chunk)` for the chunks of `size` values of `data`, on at most `threads` threads.
pub fn for_each_chunk<T: Send>(
    threads: usize,
    data: &mut [T],
    size: usize,
    f: impl Fn(usize, &mut [T]) + Sync,
) {
    let size = size.max(1);
    let threads = threads.clamp(1, data.len().div_ceil(size).max(1));
    let chunks = Mutex::new(data.chunks_mut(size).enumerate());
    let run = || {
        loop {
            let next = chunks.lock().unwrap_or_else(std::sync::PoisonError::into_inner).next();
            let Some((at, chunk)) = next else { break };
            f(at, chunk);
        }
    };
    std::thread::scope(|scope| {
        for _ in 1..threads {
            scope.spawn(run);
        }
        run();
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_come_in_order_for_any_number_of_threads() {
        for (threads, count) in [(0, 3), (1, 0), (3, 1), (4, 100)] {
            assert_eq!(map(threads, count, |i| i * i), (0..count).map(|i| i * i).collect::<Vec<_>>());
            let mut data = vec![0; count];
            for_each_chunk(threads, &mut data, 7, |at, chunk| chunk.iter_mut().for_each(|x| *x = at));
            assert!(data.iter().enumerate().all(|(i, x)| *x == i / 7));
        }
    }
}
