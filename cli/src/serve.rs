//! The coordinator's and the worker's process.

use crate::args::{CoordinatorArgs, Process, WorkerStart};
use crate::config;
use crate::exit::Exit;
use retort_common::ids::WorkerId;
use retort_common::net::NetOptions;
use retort_common::store::Store;
use retort_common::telemetry;
use retort_coordinator::Config;
use retort_worker::exchange::{Exchange, ExchangeConfig};
use retort_worker::executor::{Cohorts, TaskExecutor};
use retort_worker::model::{Device, probe};
use retort_worker::session;
use std::io::Read;
use std::sync::Arc;
use std::time::Duration;

/// How long a worker waits in an exchange for a peer that lives but sends nothing; it may compute all the while. The
/// coordinator decides earlier who holds up whom.
const EXCHANGE_PATIENCE: Duration = Duration::from_secs(3600);

pub async fn coordinator(args: CoordinatorArgs) -> anyhow::Result<Exit> {
    begin(&args.process)?;
    let config = Config {
        store: Store::open(&args.store)?,
        listen: args.listen,
        net: NetOptions { tls: config::tls_files(&args.tls)?, failure_detection: args.failure_detection },
        stall_limit: args.stall_limit,
        address_file: args.address_file,
    };
    retort_coordinator::run(config, told_to_stop(), None).await?;
    Ok(Exit::Ok)
}

pub async fn worker(args: WorkerStart) -> anyhow::Result<Exit> {
    let (coordinators, net) = config::resolve(&args.connect)?;
    let net = NetOptions { failure_detection: args.failure_detection, ..net };
    begin(&args.process)?;
    let device = Device::parse(&args.device)?;
    let threads = match args.threads {
        Some(threads) => usize::from(threads),
        None => std::thread::available_parallelism()?.get(),
    };
    device.use_threads(threads);
    // The pool is global and made once, before any tensor is.
    rayon::ThreadPoolBuilder::new().num_threads(threads).build_global()?;
    let worker: WorkerId = match args.id {
        Some(id) => id.parse()?,
        None => format!("worker-{}", &uuid::Uuid::new_v4().simple().to_string()[..8]).parse()?,
    };
    // A folder of its own for each process: two workers on a host must not clean up each other's files, and those of
    // two clusters may have the same id.
    let (_temporary, folder) = match args.cache {
        Some(folder) => (None, folder.join(worker.as_str())),
        None => {
            let temporary = tempfile::Builder::new().prefix("retort-worker-").tempdir()?;
            let folder = temporary.path().to_owned();
            (Some(temporary), folder)
        }
    };
    let runtime = tokio::runtime::Handle::current();
    let exchange = Exchange::listen(ExchangeConfig {
        worker: worker.clone(),
        listen: args.exchange_listen,
        advertise: args.exchange_advertise,
        net: net.clone(),
        patience: EXCHANGE_PATIENCE,
    })
    .await?;
    let exchange_address = exchange.address().to_owned();
    let cohorts = Cohorts { worker: worker.clone(), exchange, orphan_limit: args.orphan_limit };
    let executor = TaskExecutor::new(device.clone(), threads, &folder, args.cache_bytes, runtime)?;
    let executor = executor.with_cohorts(cohorts);
    let config = session::Config {
        coordinators,
        worker,
        device: device.name().to_owned(),
        kernels: device.kernels(),
        memory_bytes: device.memory_bytes(),
        fingerprint: tokio::task::spawn_blocking(move || probe(&device)).await?,
        threads: u32::try_from(threads)?,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        exchange_address,
        net,
    };
    session::run(config, Arc::new(executor), told_to_stop()).await?;
    Ok(Exit::Ok)
}

/// Returns at Ctrl-C, and where there is one at the signal by which service managers end a process.
async fn told_to_stop() {
    #[cfg(unix)]
    {
        use tokio::signal::unix::{SignalKind, signal};
        if let Ok(mut terminate) = signal(SignalKind::terminate()) {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = tokio::signal::ctrl_c() => {}
            }
            return;
        }
    }
    // Without a signal to listen to, only a kill ends the process, which it survives.
    if tokio::signal::ctrl_c().await.is_err() {
        std::future::pending::<()>().await;
    }
}

fn begin(process: &Process) -> anyhow::Result<()> {
    telemetry::init(process.log_json)?;
    if process.with_parent {
        std::thread::Builder::new().name("parent".to_owned()).spawn(end_with_parent)?;
    }
    Ok(())
}

/// Ends the process when standard input ends. The parent holds the pipe's other end and the kernel closes it
/// when the parent dies, however that happens. Stopping in mid-work is safe: everything survives a kill -9.
fn end_with_parent() {
    let mut buffer = [0; 64];
    let mut input = std::io::stdin().lock();
    loop {
        match input.read(&mut buffer) {
            Ok(0) => std::process::exit(0),
            Ok(_) => {}
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(_) => std::process::exit(0),
        }
    }
}
