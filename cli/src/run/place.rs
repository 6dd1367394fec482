//! Where a run keeps its things: the store, its processes' logs and files, and the lock that allows one run per store.

use crate::config;
use anyhow::{Context, bail};
use retort_common::ids::Digest;
use retort_common::store::Store;
use std::fs::{File, TryLockError};
use std::io::{Read, Write};
use std::path::PathBuf;

/// A store that belongs to this run while the value lives.
pub struct Place {
    /// The store.
    pub store: Store,
    /// Folder of the logs of this run's processes.
    pub logs: PathBuf,
    /// Folder of its workers' files: what they read from the store, and what they have in work.
    pub cache: PathBuf,
    /// Held, never read: the kernel frees it when the process ends in whatever way, so it cannot go stale.
    _lock: File,
}

impl Place {
    /// Opens the store at `url`, or the one in the user's data folder, and makes it this run's own.
    pub fn take(url: Option<&str>) -> anyhow::Result<Self> {
        let data = config::directories().map(|folders| folders.data_dir().to_owned());
        let url = match (url, &data) {
            (Some(url), _) => url.to_owned(),
            (None, Some(data)) => data.join("store").display().to_string(),
            (None, None) => bail!("no home folder to keep the store in; name a place with --store"),
        };
        let store = Store::open(&url)?;
        // Without a home, logs and lock still need a place that the next run finds again.
        let data = data.unwrap_or_else(|| std::env::temp_dir().join("retort"));
        let name = Digest::of(store.url().trim_end_matches('/').as_bytes()).short();
        // Workers of two runs have the same names, so that each run needs a folder of its own.
        let (logs, cache) = (data.join("logs").join(&name), data.join("cache").join(&name));
        let locks = data.join("locks");
        for folder in [&logs, &locks, &cache] {
            std::fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
        }
        let lock = lock(&locks.join(name), &store.url())?;
        Ok(Self { store, logs, cache, _lock: lock })
    }
}

fn lock(path: &std::path::Path, store: &str) -> anyhow::Result<File> {
    let cannot = || format!("cannot lock {}", path.display());
    let mut file = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)
        .with_context(cannot)?;
    match file.try_lock() {
        Ok(()) => {
            file.set_len(0).with_context(cannot)?;
            write!(file, "{}", std::process::id()).with_context(cannot)?;
            Ok(file)
        }
        Err(TryLockError::WouldBlock) => {
            let mut holder = String::new();
            // The number only helps people; whoever holds the lock is decided by the kernel.
            let _ = file.read_to_string(&mut holder);
            bail!(
                "another retort run (process {}) works on {store}; wait for it, end it, or use another --store",
                holder.trim()
            )
        }
        Err(TryLockError::Error(error)) => Err(error).with_context(cannot),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_run_on_a_store_is_refused_until_the_first_has_ended() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lock");
        let first = lock(&path, "file:///s").unwrap();
        let refused = lock(&path, "file:///s").unwrap_err().to_string();
        assert!(refused.contains(&format!("process {}", std::process::id())), "{refused}");
        drop(first);
        assert!(lock(&path, "file:///s").is_ok());
    }
}
