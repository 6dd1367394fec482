//! The coordinator as a process.

use crate::driver::{Driver, Probe};
use crate::grpc::jobs::JobsService;
use crate::grpc::session::WorkersService;
use crate::journal::{Journal, JournalError, ObjectJournal};
use crate::scheduler::INCARNATION;
use futures::FutureExt;
use retort_common::artifact;
use retort_common::net::{self, MAX_MESSAGE_BYTES, NetError, NetOptions};
use retort_common::proto::jobs_server::JobsServer;
use retort_common::proto::workers_server::WorkersServer;
use retort_common::store::{Store, StoreError};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::oneshot;
use tonic::service::Routes;

/// What a coordinator is told.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where everything durable lies.
    pub store: Store,
    /// Where to listen, e.g. "127.0.0.1:7070"; port 0 takes a free one.
    pub listen: String,
    /// TLS and time-outs; workers are told the same failure detection.
    pub net: NetOptions,
    /// Time without a step after which a member of a cohort counts as stalled.
    pub stall_limit: Duration,
    /// A file that gets the bound address as "host:port", once connections are taken.
    pub address_file: Option<PathBuf>,
}

/// Why a coordinator ended.
#[derive(Debug, thiserror::Error)]
pub enum CoordinatorError {
    /// The store cannot be used.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The journal failed; start again, since recovery is the only start-up path.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The network failed.
    #[error(transparent)]
    Net(#[from] NetError),
    /// The address could not be told.
    #[error("{path}: {source}; the bound address cannot be written", path = path.display())]
    AddressFile {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// A bug.
    #[error("the coordinator's driver panicked; see the log, and start it again")]
    Panicked,
}

/// Runs a coordinator until `shutdown`, or until it must end. `bound` hears the address once connections are
/// taken.
pub async fn run(
    config: Config,
    shutdown: impl Future<Output = ()>,
    bound: Option<oneshot::Sender<SocketAddr>>,
) -> Result<(), CoordinatorError> {
    let probe = manifest_probe(config.store.clone());
    run_with(config, probe, shutdown, bound).await
}

/// As [`run`], with another way to find out which artifacts exist.
pub async fn run_with(
    config: Config,
    probe: Probe,
    shutdown: impl Future<Output = ()>,
    bound: Option<oneshot::Sender<SocketAddr>>,
) -> Result<(), CoordinatorError> {
    let Config { store, listen, net, stall_limit, address_file } = config;
    let detection = net.failure_detection;
    let listener = net::bind(&listen).await?;
    let address = listener.address();
    store.check(&nonce()).await?;
    let mut journal = ObjectJournal::new(store.clone(), nonce);
    let epoch = journal.fence().await?;
    let (driver, handle) = Driver::recover(journal, detection, stall_limit, probe).await?;
    let jobs = JobsServer::new(JobsService::new(handle.clone(), store.clone()));
    let workers = WorkersServer::new(WorkersService::new(handle, epoch, detection, store.url()));
    let routes = Routes::new(limited_jobs(jobs)).add_service(limited_workers(workers));
    if let Some(path) = &address_file {
        let fail = |source| CoordinatorError::AddressFile { path: path.clone(), source };
        write_atomically(path, &address.to_string()).map_err(fail)?;
    }
    if let Some(bound) = bound {
        let _ = bound.send(address);
    }
    tracing::info!(%address, epoch, store = store.url(), "coordinator leads");
    let (stop, stopped) = oneshot::channel();
    let mut driver = tokio::spawn(driver.run(stopped));
    let mut outcome = None;
    let until = async {
        tokio::select! {
            () = shutdown => {}
            ended = &mut driver => outcome = Some(ended),
        }
        // Streams end with the driver, so that the server has nothing to wait for.
        let _ = stop.send(());
    };
    let served = net::serve(listener, &net, routes, until).await;
    let ended = match outcome {
        Some(ended) => ended,
        None => driver.await,
    };
    ended.map_err(|_| CoordinatorError::Panicked)??;
    Ok(served?)
}

fn limited_jobs(server: JobsServer<JobsService>) -> JobsServer<JobsService> {
    server.max_decoding_message_size(MAX_MESSAGE_BYTES).max_encoding_message_size(MAX_MESSAGE_BYTES)
}

fn limited_workers(server: WorkersServer<WorkersService>) -> WorkersServer<WorkersService> {
    server.max_decoding_message_size(MAX_MESSAGE_BYTES).max_encoding_message_size(MAX_MESSAGE_BYTES)
}

fn nonce() -> String {
    uuid::Uuid::new_v4().simple().to_string()
}

fn manifest_probe(store: Store) -> Probe {
    Arc::new(move |id| {
        let store = store.clone();
        async move {
            let found = artifact::find(&store, &id, INCARNATION).await.map_err(|error| error.to_string())?;
            Ok(found.map(|manifest| (manifest.meta, manifest.incarnation)))
        }
        .boxed()
    })
}

/// Whoever reads the file finds all of the address or none of it.
fn write_atomically(path: &Path, text: &str) -> std::io::Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    let new = path.with_file_name(name);
    std::fs::write(&new, text)?;
    std::fs::rename(&new, path)
}
