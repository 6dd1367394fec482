//! Tensors between the workers of a cohort: all-gather, canonical reduction, state for joiners.
//!
//! - [`Roster`]: who trains together and which microbatches each computes
//! - [`Exchange`]: one for each process; serves peers and joins generations
//! - [`Cohort`]: a generation, joined: `all_gather`, `reduce`, `fetch_state`
//! - [`plan`]: who sends what to whom, a pure function; [`fold`]: the order of additions
//! - [`wire`]: values as bytes, checksums; [`frame`]: gRPC messages without copies
//! - `registry`, `service`: what peers call; `link`: calls to a peer and the watch over it
//!
//! The exchange knows nothing of models. Everything that a peer sends is checked before it is used, and what is wrong
//! with it ends the generation under the peer's name.
//!
//! Time-outs: a peer counts as lost after `failure_detection` of silence on its connection (HTTP/2 keep-alive answers
//! even while the peer computes). Waits for a peer that lives are bounded by `patience`, since a peer may compute for
//! long.

pub mod cohort;
pub mod error;
pub mod fold;
pub mod frame;
pub mod gather;
mod link;
pub mod plan;
mod reduce;
mod registry;
pub mod roster;
mod service;
mod state;
pub mod wire;

#[cfg(test)]
mod tests;

pub use crate::training::tree::Wire;
pub use cohort::{Cohort, Spent};
pub use error::ExchangeError;
pub use roster::{Member, Roster, RosterError};

use link::Link;
use registry::{Hub, Registry};
use retort_common::ids::WorkerId;
use retort_common::net::{self, NetOptions};
use retort_common::proto;
use std::sync::Arc;
use std::time::Duration;
use tokio::runtime::{Builder, Handle};
use tokio::sync::oneshot;
use tonic::service::Routes;

/// Longest wait for a peer that lives, unless told otherwise.
pub const DEFAULT_PATIENCE: Duration = Duration::from_secs(600);

/// How a process takes part in exchanges.
#[derive(Clone, Debug)]
pub struct ExchangeConfig {
    /// This worker.
    pub worker: WorkerId,
    /// Address to listen on, host:port; port 0 takes a free one.
    pub listen: String,
    /// Host or host:port under which peers reach this worker; the address listened on without it.
    pub advertise: Option<String>,
    /// TLS and time-outs.
    pub net: NetOptions,
    /// Longest wait for a peer that lives but sends nothing.
    pub patience: Duration,
}

/// A process' part in exchanges. It has a thread of its own, so that tensors never delay anything else.
#[derive(Clone)]
pub struct Exchange {
    inner: Arc<Inner>,
}

struct Inner {
    config: ExchangeConfig,
    address: String,
    registry: Arc<Registry>,
    runtime: Handle,
    /// Dropped with the last user, which ends the thread.
    _stop: oneshot::Sender<()>,
}

impl Exchange {
    /// Listens for peers.
    pub async fn listen(config: ExchangeConfig) -> Result<Self, ExchangeError> {
        let (started, start) = oneshot::channel();
        let (stop, stopped) = oneshot::channel();
        let registry = Arc::new(Registry::new(config.net.failure_detection));
        let (service, settings) = (service::Service::new(registry.clone()), config.clone());
        let thread = std::thread::Builder::new().name("exchange".to_owned());
        let body = move || serve(settings, service, started, stopped);
        thread.spawn(body).map_err(|error| ExchangeError::Stopped(error.to_string()))?;
        let ended = |_| ExchangeError::Stopped("its thread ended before it listened".to_owned());
        let (runtime, bound) = start.await.map_err(ended)??;
        let address = match &config.advertise {
            None => bound.to_string(),
            Some(host) if has_port(host) => host.clone(),
            Some(host) => format!("{host}:{}", bound.port()),
        };
        Ok(Self { inner: Arc::new(Inner { config, address, registry, runtime, _stop: stop }) })
    }

    /// Where peers reach this worker, host:port.
    pub fn address(&self) -> &str {
        &self.inner.address
    }

    /// Joins a generation; whatever older one of its lineage was joined is over then.
    pub fn join(&self, roster: Roster, wire: Wire) -> Result<Cohort, ExchangeError> {
        roster.validate(wire)?;
        let Inner { config, registry, runtime, .. } = &*self.inner;
        let (rank, own) = (roster.rank, &config.worker);
        let found = &roster.members[rank].worker;
        if found != own {
            let (found, own) = (found.clone(), own.clone());
            return Err(RosterError::NotOwn { rank, found, own }.into());
        }
        let digest = roster.digest(wire);
        let label = proto::Label {
            lineage: roster.lineage.clone(),
            generation: roster.generation,
            rank: rank as u32,
            worker: own.to_string(),
            roster: digest.as_bytes().to_vec(),
        };
        // Channels live on the exchange's thread.
        let guard = runtime.enter();
        let times = (config.net.failure_detection, config.patience);
        let link = |(at, member): (usize, &Member)| {
            if at == rank {
                return Ok(None);
            }
            let channel = net::tensor_channel(&member.address, &config.net)?;
            let link =
                Link::new(member.worker.clone(), member.address.clone(), channel, label.clone(), times);
            Ok(Some(Arc::new(link)))
        };
        let links = roster.members.iter().enumerate().map(link).collect::<Result<Vec<_>, ExchangeError>>()?;
        drop(guard);
        let (lineage, found) = (roster.lineage.clone(), roster.generation);
        let (hub, inboxes) = Hub::new(roster, digest);
        registry.join(&hub).map_err(|known| RosterError::Old { lineage, found, known })?;
        Ok(Cohort::new(self.inner.clone(), hub, links, inboxes, wire))
    }

    /// Leaves the generation of a lineage, if one was joined.
    pub fn leave(&self, lineage: &str) {
        self.inner.registry.leave(lineage);
    }
}

fn has_port(host: &str) -> bool {
    host.rsplit_once(':').is_some_and(|(before, port)| !before.contains(':') && port.parse::<u16>().is_ok())
        || host.starts_with('[') && host.contains("]:")
}

type Started = Result<(Handle, std::net::SocketAddr), ExchangeError>;

/// The exchange's thread.
fn serve(
    config: ExchangeConfig,
    service: service::Service,
    started: oneshot::Sender<Started>,
    stopped: oneshot::Receiver<()>,
) {
    let runtime = match Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            let _ = started.send(Err(ExchangeError::Stopped(error.to_string())));
            return;
        }
    };
    runtime.block_on(async {
        let listener = match net::bind(&config.listen).await {
            Ok(listener) => listener,
            Err(error) => {
                let _ = started.send(Err(error.into()));
                return;
            }
        };
        if started.send(Ok((Handle::current(), listener.address()))).is_err() {
            return;
        }
        let shutdown = async { drop(stopped.await) };
        if let Err(error) = net::serve_tensors(listener, &config.net, Routes::new(service), shutdown).await {
            tracing::error!("the exchange has stopped: {error}");
        }
    });
}
