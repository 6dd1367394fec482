//! The child processes of a run: one coordinator and some workers, the same program as on a cluster.
//!
//! Each child is one task here that starts it, waits for its end and starts it again. A child holds a pipe whose
//! other end is this process, and ends when that end closes: so it ends with this process even if that is killed.

use anyhow::Context;
use std::fs::File;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;
use tokio::process::{Child, ChildStdin, Command};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;

/// First pause before a child is started again; doubles each time it ends soon.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
/// Longest pause before a child is started again.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// A child that lived this long had started well.
const SETTLED: Duration = Duration::from_secs(10);
/// Ends in a row, each with an error and soon after its start, after which starting again is of no use.
const MOST_FAILED_STARTS: u32 = 3;
/// How long a child may take to end when its pipe has closed.
const STOP_LIMIT: Duration = Duration::from_secs(5);
/// How often the coordinator's address file is looked for.
const ADDRESS_PAUSE: Duration = Duration::from_millis(20);
/// Bytes of a log's end that are shown when its process cannot be started.
const LOG_END: usize = 2000;

/// Where the children keep things.
pub struct Folders {
    /// A log for each child.
    pub logs: PathBuf,
    /// A folder for each worker's files.
    pub cache: PathBuf,
}

/// What one child is.
#[derive(Clone)]
struct Plan {
    program: PathBuf,
    name: String,
    log: PathBuf,
}

/// The children of one run.
pub struct Supervisor {
    address: watch::Receiver<Option<String>>,
    wanted: watch::Sender<bool>,
    stop: watch::Sender<bool>,
    failures: mpsc::Receiver<anyhow::Error>,
    children: JoinSet<()>,
}

/// What each worker computes with.
#[derive(Clone, Debug)]
pub struct Means {
    /// Compute threads.
    pub threads: u16,
    /// The device's name.
    pub device: String,
}

impl Supervisor {
    /// Starts `program` as the coordinator. Workers start when they are needed.
    pub fn new(
        program: PathBuf,
        store: String,
        folders: Folders,
        workers: usize,
        means: Means,
    ) -> anyhow::Result<Self> {
        let (publish, address) = watch::channel(None);
        let (wanted, want) = watch::channel(false);
        let (stop, stopped) = watch::channel(false);
        let (fail, failures) = mpsc::channel(workers + 1);
        let plan = |name: String| -> anyhow::Result<Plan> {
            let log = folders.logs.join(format!("{name}.log"));
            begin_log(&log).with_context(|| format!("cannot write {}", log.display()))?;
            Ok(Plan { program: program.clone(), name, log })
        };
        let mut children = JoinSet::new();
        let address_file = folders.logs.join("coordinator.address");
        let coordinator = plan("coordinator".to_owned())?;
        children.spawn(report(
            fail.clone(),
            keep_coordinator(coordinator, store, address_file, publish, stopped.clone()),
        ));
        for number in 1..=workers {
            let worker = plan(format!("worker-{number}"))?;
            let cache = folders.cache.clone();
            let (means, address) = (means.clone(), address.clone());
            let kept = keep_worker(worker, means, cache, address, want.clone(), stopped.clone());
            children.spawn(report(fail.clone(), kept));
        }
        Ok(Self { address, wanted, stop, failures, children })
    }

    /// The coordinator's address, once it listens. It stays the same over restarts.
    pub async fn coordinator_address(&self) -> String {
        known(self.address.clone()).await
    }

    /// Starts the workers, if that has not happened yet.
    pub fn need_workers(&self) {
        self.wanted.send_if_modified(|wanted| !std::mem::replace(wanted, true));
    }

    /// Returns when a child cannot be kept running, with the reason.
    pub fn failure(&mut self) -> impl Future<Output = anyhow::Error> + use<> {
        let (_, empty) = mpsc::channel(1);
        let mut failures = std::mem::replace(&mut self.failures, empty);
        async move {
            match failures.recv().await {
                Some(error) => error,
                None => std::future::pending().await,
            }
        }
    }

    /// Ends every child.
    pub async fn stop(mut self) {
        self.stop.send_replace(true);
        while self.children.join_next().await.is_some() {}
    }
}

async fn report(failures: mpsc::Sender<anyhow::Error>, kept: impl Future<Output = anyhow::Result<()>>) {
    if let Err(error) = kept.await {
        // A full channel holds errors enough to end the run.
        let _ = failures.try_send(error);
    }
}

async fn keep_coordinator(
    plan: Plan,
    store: String,
    address_file: PathBuf,
    publish: watch::Sender<Option<String>>,
    stopped: watch::Receiver<bool>,
) -> anyhow::Result<()> {
    // An address of an earlier run would be taken for this one's.
    match std::fs::remove_file(&address_file) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("cannot remove {}", address_file.display()));
        }
        _ => {}
    }
    let publish = Arc::new(publish);
    let address = publish.subscribe();
    let reader = tokio::spawn(read_address(address_file.clone(), Arc::clone(&publish)));
    let arguments = || {
        // Workers and the client keep the first address, so a restarted coordinator takes it again.
        let listen = address.borrow().clone().unwrap_or_else(|| "http://127.0.0.1:0".to_owned());
        let listen = listen.trim_start_matches("http://").to_owned();
        let file = address_file.display().to_string();
        ["coordinator", "--store", &store, "--listen", &listen, "--address-file", &file]
            .map(str::to_owned)
            .to_vec()
    };
    let outcome = keep(&plan, arguments, stopped).await;
    reader.abort();
    outcome
}

/// Publishes the coordinator's address once its file is there. The coordinator writes it in one go.
async fn read_address(file: PathBuf, publish: Arc<watch::Sender<Option<String>>>) {
    loop {
        let text = std::fs::read_to_string(&file).unwrap_or_default();
        if let Ok(address) = text.trim().parse::<SocketAddr>() {
            publish.send_replace(Some(format!("http://{address}")));
            return;
        }
        tokio::time::sleep(ADDRESS_PAUSE).await;
    }
}

async fn keep_worker(
    plan: Plan,
    means: Means,
    cache: PathBuf,
    address: watch::Receiver<Option<String>>,
    mut wanted: watch::Receiver<bool>,
    mut stopped: watch::Receiver<bool>,
) -> anyhow::Result<()> {
    let needed = async {
        told(&mut wanted).await;
        known(address).await
    };
    let address = tokio::select! {
        address = needed => address,
        () = told(&mut stopped) => return Ok(()),
    };
    let (threads, cache) = (means.threads.to_string(), cache.display().to_string());
    let arguments = || {
        let place = ["worker", "--coordinator", &address, "--id", &plan.name];
        let means = ["--threads", &threads, "--device", &means.device, "--cache", &cache];
        place.iter().chain(&means).map(|text| (*text).to_owned()).collect()
    };
    keep(&plan, arguments, stopped).await
}

async fn known(mut address: watch::Receiver<Option<String>>) -> String {
    loop {
        if let Some(address) = address.borrow_and_update().clone() {
            return address;
        }
        if address.changed().await.is_err() {
            return std::future::pending().await;
        }
    }
}

/// Returns once the value is true. A sender that is gone will not tell any more: whoever dropped it ends this task.
async fn told(value: &mut watch::Receiver<bool>) {
    // The guard that wait_for returns must not live across an await.
    let gone = value.wait_for(|value| *value).await.is_err();
    if gone {
        std::future::pending::<()>().await;
    }
}

/// Starts a child again whenever it ends, until told to stop. A child that was killed is always started again;
/// one that ends by itself with an error several times in a row is not.
async fn keep(
    plan: &Plan,
    arguments: impl Fn() -> Vec<String>,
    mut stopped: watch::Receiver<bool>,
) -> anyhow::Result<()> {
    let (mut pause, mut failed_starts) = (FIRST_PAUSE, 0);
    loop {
        let mut child = start(plan, &arguments())?;
        // Taken out, since waiting closes the pipe that a child still has, and a closed pipe ends it.
        let pipe = child.stdin.take();
        let begun = Instant::now();
        let status = tokio::select! {
            status = child.wait() => status.with_context(|| format!("cannot wait for {}", plan.name))?,
            () = told(&mut stopped) => return end(child, pipe).await,
        };
        if begun.elapsed() >= SETTLED {
            (pause, failed_starts) = (FIRST_PAUSE, 0);
        } else if status.code().is_some_and(|code| code != 0) {
            failed_starts += 1;
        }
        if failed_starts >= MOST_FAILED_STARTS {
            anyhow::bail!("{} cannot be kept running ({status}): {}", plan.name, log_end(&plan.log));
        }
        note(plan, status);
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = told(&mut stopped) => return Ok(()),
        }
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

fn start(plan: &Plan, arguments: &[String]) -> anyhow::Result<Child> {
    let log = File::options().append(true).create(true).open(&plan.log);
    let log = log.with_context(|| format!("cannot write {}", plan.log.display()))?;
    let mut command = Command::new(&plan.program);
    command.args(arguments).arg("--with-parent");
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(log).kill_on_drop(true);
    // What the user set for a client must not reach the children of this run.
    for variable in ["RETORT_COORDINATOR", "RETORT_TLS_CERT", "RETORT_TLS_KEY", "RETORT_TLS_CA"] {
        command.env_remove(variable);
    }
    // Ctrl-C reaches this process alone, which then ends its children in order.
    #[cfg(unix)]
    command.process_group(0);
    command.spawn().with_context(|| format!("cannot start {}", plan.name))
}

/// Closes the child's pipe, at which it ends by itself; kills it if it does not.
async fn end(mut child: Child, pipe: Option<ChildStdin>) -> anyhow::Result<()> {
    drop(pipe);
    if tokio::time::timeout(STOP_LIMIT, child.wait()).await.is_err() {
        child.kill().await.context("cannot end a child")?;
    }
    Ok(())
}

/// Into the child's own log, since the terminal belongs to the job.
fn note(plan: &Plan, status: ExitStatus) {
    use std::io::Write;
    if let Ok(mut log) = File::options().append(true).open(&plan.log) {
        let _ = writeln!(log, "retort run: {} ended ({status}) and is started again", plan.name);
    }
}

/// An empty log; the one of the run before is kept beside it.
fn begin_log(log: &Path) -> std::io::Result<()> {
    if log.exists() {
        std::fs::rename(log, log.with_extension("previous.log"))?;
    }
    File::create(log).map(drop)
}

fn log_end(log: &Path) -> String {
    let bytes = std::fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes[bytes.len().saturating_sub(LOG_END)..]).into_owned();
    let error = text.lines().rev().find(|line| line.starts_with("error: "));
    error.map_or_else(|| text.trim().to_owned(), str::to_owned)
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    /// A program that notes how it was called, behaves as `body` says and ends with its input.
    fn stand_in(folder: &Path, body: &str) -> PathBuf {
        let path = folder.join("stand-in");
        let text = format!(
            "#!/bin/sh\necho \"$$ $*\" >> {}/calls\n{body}\nif [ $1 = coordinator ]; then echo 127.0.0.1:4567 > $7; fi\ncat > /dev/null\n",
            folder.display()
        );
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        path
    }

    fn supervisor(folder: &Path, body: &str) -> Supervisor {
        let program = stand_in(folder, body);
        let folders = Folders { logs: folder.to_owned(), cache: folder.join("cache") };
        let means = Means { threads: 1, device: "flex".to_owned() };
        Supervisor::new(program, "memory://".to_owned(), folders, 2, means).unwrap()
    }

    /// The calls of one kind, once there are `count`.
    async fn calls(folder: &Path, kind: &str, count: usize) -> Vec<String> {
        loop {
            let text = std::fs::read_to_string(folder.join("calls")).unwrap_or_default();
            let found: Vec<_> = text.lines().filter(|line| line.contains(kind)).map(str::to_owned).collect();
            if found.len() >= count {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    fn signal(signal: &str, call: &str) -> bool {
        let process = call.split(' ').next().unwrap();
        let mut kill = std::process::Command::new("kill");
        kill.args([signal, process]).stderr(Stdio::null()).status().unwrap().success()
    }

    #[tokio::test]
    async fn a_killed_coordinator_comes_back_at_its_address_and_all_end_together() {
        let folder = tempfile::tempdir().unwrap();
        let supervisor = supervisor(folder.path(), "");
        assert_eq!(supervisor.coordinator_address().await, "http://127.0.0.1:4567");
        assert_eq!(calls(folder.path(), "worker --", 0).await.len(), 0);
        supervisor.need_workers();
        let workers = calls(folder.path(), "worker --coordinator http://127.0.0.1:4567", 2).await;
        assert!(signal("-9", &calls(folder.path(), "coordinator --store", 1).await[0]));
        let coordinators = calls(folder.path(), "coordinator --store", 2).await;
        assert!(coordinators[0].contains("--listen 127.0.0.1:0 "), "{coordinators:?}");
        assert!(coordinators[1].contains("--listen 127.0.0.1:4567 "), "{coordinators:?}");
        supervisor.stop().await;
        for call in workers.iter().chain(&coordinators) {
            assert!(!signal("-0", call), "{call} is still there");
        }
    }

    #[tokio::test]
    async fn a_coordinator_that_cannot_start_ends_the_run_with_its_own_words() {
        let folder = tempfile::tempdir().unwrap();
        let mut supervisor = supervisor(folder.path(), "echo 'error: the store is full' >&2; exit 1");
        let text = supervisor.failure().await.to_string();
        assert!(text.contains("coordinator") && text.contains("error: the store is full"), "{text}");
        assert_eq!(calls(folder.path(), "coordinator", 0).await.len(), MOST_FAILED_STARTS as usize);
        supervisor.stop().await;
    }
}
