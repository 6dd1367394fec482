//! A wire between workers that can be cut for one pair: every worker is reached by its peers through one.
//!
//! Nothing is closed and nothing is lost, as behind a firewall that begins to drop packets: bytes just do not arrive.
//! Who dials is told from the kernel's table of sockets, since all workers are at one address.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

const LOOK: Duration = Duration::from_millis(10);

/// What every connection of a wire looks at.
#[derive(Default)]
struct Switch {
    /// Where the worker listens now; it may be another process after a kill.
    target: String,
    /// Processes whose bytes do not arrive, in either direction.
    cut: BTreeSet<u32>,
    /// Processes that may dial.
    workers: Vec<u32>,
}

/// The way to one worker.
pub struct Wire {
    pub address: SocketAddr,
    switch: Arc<Mutex<Switch>>,
}

impl Wire {
    pub fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (address, switch) = (listener.local_addr().unwrap(), Arc::<Mutex<Switch>>::default());
        let shared = switch.clone();
        std::thread::spawn(move || listener.incoming().flatten().for_each(|stream| connect(stream, &shared)));
        Self { address, switch }
    }

    /// Where the worker behind it listens.
    pub fn lead_to(&self, target: &str) {
        target.clone_into(&mut self.switch.lock().unwrap().target);
    }

    /// Which processes there are.
    pub fn know(&self, workers: &[u32]) {
        self.switch.lock().unwrap().workers = workers.to_vec();
    }

    /// Nothing of these processes arrives any more; of all others it does.
    pub fn cut(&self, processes: &[u32]) {
        self.switch.lock().unwrap().cut = processes.iter().copied().collect();
    }
}

fn connect(from: TcpStream, switch: &Arc<Mutex<Switch>>) {
    let (target, workers) = {
        let switch = switch.lock().unwrap();
        (switch.target.clone(), switch.workers.clone())
    };
    let Ok(to) = TcpStream::connect(target) else { return };
    let dialler = from.peer_addr().ok().and_then(|peer| owner(peer.port(), &workers));
    let _ = (from.set_nodelay(true), to.set_nodelay(true));
    for (from, to) in [(&from, &to), (&to, &from)] {
        let (from, to, switch) = (from.try_clone().unwrap(), to.try_clone().unwrap(), switch.clone());
        std::thread::spawn(move || pass(from, to, dialler, &switch));
    }
}

/// Copies bytes, and keeps them back while the pair is cut.
fn pass(mut from: TcpStream, mut to: TcpStream, dialler: Option<u32>, switch: &Mutex<Switch>) {
    let is_cut = || dialler.is_some_and(|process| switch.lock().unwrap().cut.contains(&process));
    let mut buffer = vec![0; 256 << 10];
    while let Ok(read @ 1..) = from.read(&mut buffer) {
        while is_cut() {
            std::thread::sleep(LOOK);
        }
        if to.write_all(&buffer[..read]).is_err() {
            break;
        }
    }
    // The end of a connection does not get through either.
    while is_cut() {
        std::thread::sleep(LOOK);
    }
    let _ = (from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both));
}

/// Which of these processes has the socket at this local port.
fn owner(port: u16, processes: &[u32]) -> Option<u32> {
    let table = std::fs::read_to_string("/proc/net/tcp").ok()?;
    let local = format!("0100007F:{port:04X}");
    let inode = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let inode = inode.filter(|fields| fields.get(1) == Some(&local.as_str())).find_map(|fields| {
        let inode = *fields.get(9)?;
        (inode != "0").then(|| format!("socket:[{inode}]"))
    })?;
    let has = |process: &u32| {
        let open = std::fs::read_dir(format!("/proc/{process}/fd")).into_iter().flatten().flatten();
        let mut links = open.filter_map(|entry| std::fs::read_link(entry.path()).ok());
        links.any(|link| link == Path::new(&inode))
    };
    processes.iter().copied().find(has)
}
