//! Processes that end with their test, and what lies in a store.

use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// Longest that anything is waited for: far more than it takes, since machines that run tests are busy.
const PATIENCE: Duration = Duration::from_secs(120);
/// Pause between two looks at something that is waited for.
const PAUSE: Duration = Duration::from_millis(20);

/// The command with none of the caller's own set-up.
pub fn retort(home: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_retort"));
    command.args(arguments).current_dir(home).env("HOME", home);
    for name in ["XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_CACHE_HOME", "RETORT_COORDINATOR", "RETORT_LOG"] {
        command.env_remove(name);
    }
    command
}

/// An address at which nothing listens.
pub fn dead_address() -> String {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string()
}

/// Waits until `look` finds something.
pub fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(begun.elapsed() < PATIENCE, "waited in vain: {what}");
        std::thread::sleep(PAUSE);
    }
}

/// How a command ended.
pub struct Ended {
    line: String,
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Ended {
    /// How a command line ended by another way than [`Home::retort`].
    pub fn of(line: &str, output: Output) -> Self {
        let text = |bytes| String::from_utf8(bytes).unwrap();
        let (stdout, stderr) = (text(output.stdout), text(output.stderr));
        Self { line: line.to_owned(), code: output.status.code(), stdout, stderr }
    }

    /// Checks the exit code, and that every word is on stdout or stderr.
    #[track_caller]
    pub fn expect(self, code: i32, words: &[&str]) -> Self {
        let Self { line, stdout, stderr, .. } = &self;
        assert_eq!(self.code, Some(code), "retort {line}\n{stdout}{stderr}");
        for word in words {
            let found = stdout.contains(word) || stderr.contains(word);
            assert!(found, "retort {line}: no {word:?} in\n{stdout}{stderr}");
        }
        self
    }

    /// What stands on stdout.
    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| {
            panic!("retort {}: {error} in\n{}{}", self.line, self.stdout, self.stderr)
        })
    }
}

/// A user's home, and the working directory of every command of a test.
pub struct Home(tempfile::TempDir);

impl Home {
    pub fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// Runs a command to its end.
    pub fn retort(&self, line: &str) -> Ended {
        let arguments: Vec<_> = line.split_whitespace().collect();
        let output = retort(self.path(), &arguments).stdin(Stdio::null()).output().unwrap();
        Ended::of(line, output)
    }

    /// Starts a command; what it says goes to files.
    pub fn start(&self, line: &str) -> Process {
        let arguments: Vec<_> = line.split_whitespace().collect();
        let said = tempfile::tempdir_in(self.path()).unwrap();
        let file = |name| std::fs::File::create(said.path().join(name)).unwrap();
        let mut command = retort(self.path(), &arguments);
        // The pipe ends with the test, however that ends, and with it what was started with --with-parent.
        command.stdin(Stdio::piped()).stdout(file("stdout")).stderr(file("stderr"));
        Process { line: line.to_owned(), child: command.spawn().unwrap(), said }
    }
}

/// A process that is killed when this value is dropped.
pub struct Process {
    line: String,
    child: Child,
    said: tempfile::TempDir,
}

impl Process {
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// As by `kill -9`.
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    pub fn has_ended(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }

    /// What stands on its stdout so far.
    pub fn said(&self) -> String {
        std::fs::read_to_string(self.said.path().join("stdout")).unwrap()
    }

    /// Waits for its end.
    pub fn end(mut self) -> Ended {
        let line = self.line.clone();
        let status = until(&format!("the end of retort {line}"), || self.child.try_wait().unwrap());
        let read = |name| std::fs::read_to_string(self.said.path().join(name)).unwrap();
        Ended { line, code: status.code(), stdout: read("stdout"), stderr: read("stderr") }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Sends a signal to a process; whether there was one.
pub fn signal(name: &str, process: u32) -> bool {
    let mut kill = Command::new("kill");
    kill.args([name, &process.to_string()]).stderr(Stdio::null()).status().unwrap().success()
}

/// A cluster as users start it by hand: a coordinator, and workers as tests add them. It ends with this value.
pub struct Cluster {
    pub home: Home,
    pub address: String,
    coordinator: Process,
    pub workers: Vec<Process>,
}

impl Cluster {
    /// A coordinator on a store of its own.
    pub fn start() -> Self {
        Self::start_in(Home::new())
    }

    /// A coordinator on the folder `store` of `home`.
    pub fn start_in(home: Home) -> Self {
        let (coordinator, address) = Self::coordinator(&home, "127.0.0.1:0");
        Self { home, address, coordinator, workers: Vec::new() }
    }

    /// A coordinator that listens, and where.
    fn coordinator(home: &Home, listen: &str) -> (Process, String) {
        let process = home.start(&format!(
            "coordinator --store store --listen {listen} --address-file address --failure-detection 1s --with-parent"
        ));
        let file = home.path().join("address");
        let address = until("the coordinator's address", || {
            std::fs::read_to_string(&file).ok().filter(|text| !text.is_empty())
        });
        (process, address.trim().to_owned())
    }

    /// Starts one more worker, or starts it again.
    pub fn add_worker(&mut self, id: &str) {
        self.add_worker_with(id, "");
    }

    /// The same with more flags.
    pub fn add_worker_with(&mut self, id: &str, flags: &str) {
        let address = &self.address;
        self.workers.push(self.home.start(&format!(
            "worker --coordinator {address} --id {id} --threads 1 --cache cache --failure-detection 1s --with-parent {flags}"
        )));
    }

    /// As by `kill -9`, then started again by hand at the same address.
    pub fn restart(&mut self) {
        self.coordinator.kill();
        std::fs::remove_file(self.home.path().join("address")).unwrap();
        (self.coordinator, _) = Self::coordinator(&self.home, &self.address);
    }

    /// Runs a client's verb.
    pub fn retort(&self, line: &str) -> Ended {
        self.home.retort(&format!("{line} --coordinator {}", self.address))
    }

    /// Checks a client's verb: exit code, and words on stdout or, after a failure, on stderr.
    #[track_caller]
    pub fn check(&self, line: &str, code: i32, words: &[&str]) {
        crate::command::check_in(
            self.home.path(),
            &format!("{line} --coordinator {}", self.address),
            code,
            words,
        );
    }

    /// Ctrl-C while a verb waits must detach it, with exit code 130.
    #[cfg(unix)]
    pub fn interrupt(&self, line: &str) {
        let process = self.home.start(&format!("{line} --coordinator {}", self.address));
        std::thread::sleep(Duration::from_secs(1));
        assert!(signal("-INT", process.id()));
        process.end().expect(130, &[]);
    }
}

/// Every file under a folder, relative to it.
pub fn files(folder: &Path) -> BTreeSet<PathBuf> {
    let (mut found, mut open) = (BTreeSet::new(), vec![folder.to_owned()]);
    while let Some(next) = open.pop() {
        // A folder may go away while it is looked at.
        for entry in std::fs::read_dir(&next).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() {
                open.push(path);
            } else {
                found.insert(path.strip_prefix(folder).unwrap().to_owned());
            }
        }
    }
    found
}

/// The finished tasks of a store: kind and task of each artifact, with its manifest and the attempts that wrote.
pub fn finished(store: &Path) -> BTreeMap<PathBuf, (Vec<u8>, BTreeSet<PathBuf>)> {
    let artifacts = store.join("artifacts");
    let all = files(&artifacts);
    let manifests = all.iter().filter(|path| path.ends_with("manifest.1.json"));
    let entry = |manifest: &PathBuf| {
        let task = manifest.parent().unwrap().to_owned();
        let bytes = std::fs::read(artifacts.join(manifest)).unwrap();
        let parts = std::fs::read_dir(artifacts.join(&task)).unwrap().flatten().map(|entry| entry.path());
        let attempts = parts.filter(|path| path.is_dir()).collect();
        (task, (bytes, attempts))
    };
    manifests.map(entry).collect()
}

/// The one report in a store, and the folder it lies in.
#[track_caller]
pub fn report(store: &Path) -> (PathBuf, Value) {
    let mut found = files(&store.join("jobs"));
    found.retain(|path| path.ends_with("report/report.json"));
    let found: Vec<_> = found.into_iter().collect();
    let [path] = &found[..] else { panic!("reports: {found:?}") };
    let path = store.join("jobs").join(path);
    let json = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    (path.parent().unwrap().to_owned(), json)
}
