//! The one seam through which every connection goes: dialling, listening, time-outs and TLS.
//!
//! All time-outs derive from one figure, `failure_detection`. Without HTTP/2 keep-alive on both sides a
//! channel hangs for good behind a partition, so it is never left out.

use hyper_util::rt::TokioIo;
use std::error::Error as _;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tonic::service::Routes;
use tonic::transport::server::TcpIncoming;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity, Server, ServerTlsConfig};

/// Largest message on any stream; tensors travel in chunks far below it.
pub const MAX_MESSAGE_BYTES: usize = 32 << 20;
/// Version of the session between workers and coordinators; differing ones refuse each other.
pub const SESSION_PROTOCOL: u32 = 3;
/// Silence after which a peer counts as lost, unless told otherwise.
pub const DEFAULT_FAILURE_DETECTION: Duration = Duration::from_secs(5);

/// PEM files of one party.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    /// Its own certificate chain.
    pub cert: PathBuf,
    /// The key of its certificate.
    pub key: PathBuf,
    /// The authority that its peers' certificates must come from.
    pub ca: PathBuf,
}

/// What every connection of a process has in common.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetOptions {
    /// Mutual TLS with these files; plain text without them.
    pub tls: Option<TlsFiles>,
    /// Silence after which a peer counts as lost; every other time-out derives from it.
    pub failure_detection: Duration,
}

impl Default for NetOptions {
    fn default() -> Self {
        Self { tls: None, failure_detection: DEFAULT_FAILURE_DETECTION }
    }
}

impl NetOptions {
    /// Two pings fit in the time after which a peer counts as lost.
    fn keep_alive_interval(&self) -> Duration {
        self.failure_detection / 3
    }

    fn keep_alive_timeout(&self) -> Duration {
        self.failure_detection * 2 / 3
    }
}

/// What a connection carries. The receiver of frames says how large they may be, so both ends set it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Traffic {
    /// Names and numbers: HTTP/2's own sizes.
    Control,
    /// Tensors in chunks of some 256 KiB: one chunk fits a frame, and several are under way.
    Tensors,
}

impl Traffic {
    fn frame_bytes(self) -> Option<u32> {
        (self == Self::Tensors).then_some(512 << 10)
    }

    fn stream_window_bytes(self) -> Option<u32> {
        (self == Self::Tensors).then_some(2 << 20)
    }

    fn connection_window_bytes(self) -> Option<u32> {
        (self == Self::Tensors).then_some(4 << 20)
    }
}

/// Why a connection could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum NetError {
    /// A text that names no server.
    #[error("{text:?} is not an address: {cause}; use host:port, http://host:port or https://host:port")]
    Address {
        /// As given.
        text: String,
        /// What is wrong with it.
        cause: String,
    },
    /// A https address without TLS files.
    #[error("{url}: needs TLS; give certificate, key and ca files or use http://")]
    NoTls {
        /// As given.
        url: String,
    },
    /// A file of TLS that could not be read.
    #[error("{path}: {source}; check the TLS files", path = path.display())]
    TlsFile {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// TLS files that do not fit together.
    #[error("TLS files: {cause}; certificate, key and ca must be PEM, and the key that of the certificate")]
    Tls {
        /// What the TLS library says.
        cause: String,
    },
    /// An address that cannot be listened on.
    #[error(
        "cannot listen on {address}: {source}; check that the address is this machine's and its port free"
    )]
    Bind {
        /// As given.
        address: String,
        /// The cause.
        source: io::Error,
    },
    /// The server ended with an error.
    #[error("server on {address}: {cause}")]
    Serve {
        /// Where it listened.
        address: SocketAddr,
        /// The cause.
        cause: String,
    },
}

/// A channel to a server. It dials on first use and again whenever the connection is lost.
pub fn channel(url: &str, options: &NetOptions) -> Result<Channel, NetError> {
    open(url, options, Traffic::Control)
}

/// A channel for tensors: frames and windows are large.
pub fn tensor_channel(url: &str, options: &NetOptions) -> Result<Channel, NetError> {
    open(url, options, Traffic::Tensors)
}

fn open(url: &str, options: &NetOptions, traffic: Traffic) -> Result<Channel, NetError> {
    let url = complete(url, options.tls.is_some());
    let fail = |cause: tonic::transport::Error| NetError::Address { text: url.clone(), cause: chain(&cause) };
    let mut endpoint = Endpoint::from_shared(url.clone())
        .map_err(fail)?
        .connect_timeout(options.failure_detection)
        .http2_keep_alive_interval(options.keep_alive_interval())
        .keep_alive_timeout(options.keep_alive_timeout())
        .keep_alive_while_idle(true)
        .tcp_nodelay(true)
        .max_frame_size(traffic.frame_bytes())
        .initial_stream_window_size(traffic.stream_window_bytes())
        .initial_connection_window_size(traffic.connection_window_bytes());
    if endpoint.uri().host().is_none() || endpoint.uri().port_u16().is_none() {
        return Err(NetError::Address { text: url, cause: "host or port is missing".to_owned() });
    }
    match (&options.tls, url.starts_with("https://")) {
        (Some(files), true) => endpoint = endpoint.tls_config(client_tls(files)?).map_err(tls_error)?,
        (None, true) => return Err(NetError::NoTls { url }),
        (_, false) => {}
    }
    Ok(endpoint.connect_with_connector_lazy(tower::service_fn(dial)))
}

/// The one place where a connection is opened, so that a simulation can put another network under it.
async fn dial(uri: http::Uri) -> io::Result<TokioIo<TcpStream>> {
    let missing = || io::Error::new(io::ErrorKind::InvalidInput, "host or port is missing");
    let host = uri.host().ok_or_else(missing)?.trim_matches(['[', ']']);
    let stream = TcpStream::connect((host, uri.port_u16().ok_or_else(missing)?)).await?;
    stream.set_nodelay(true)?;
    Ok(TokioIo::new(stream))
}

fn complete(url: &str, tls: bool) -> String {
    match (url.contains("://"), tls) {
        (true, _) => url.to_owned(),
        (false, true) => format!("https://{url}"),
        (false, false) => format!("http://{url}"),
    }
}

/// A bound socket that is not served yet, so that its address is known before anything is.
#[derive(Debug)]
pub struct Listener {
    listener: TcpListener,
    address: SocketAddr,
}

impl Listener {
    /// The address it is bound to; the port is the real one where 0 was asked for.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

/// Binds a socket, e.g. "127.0.0.1:0".
pub async fn bind(address: &str) -> Result<Listener, NetError> {
    let fail = |source| NetError::Bind { address: address.to_owned(), source };
    let listener = TcpListener::bind(address).await.map_err(fail)?;
    let bound = listener.local_addr().map_err(fail)?;
    Ok(Listener { listener, address: bound })
}

/// Serves until `shutdown`, then lets open calls finish for at most `failure_detection`.
pub async fn serve(
    listener: Listener,
    options: &NetOptions,
    routes: Routes,
    shutdown: impl Future<Output = ()>,
) -> Result<(), NetError> {
    serve_traffic(listener, options, routes, Traffic::Control, shutdown).await
}

/// Like [`serve`], for tensors: frames and windows are large.
pub async fn serve_tensors(
    listener: Listener,
    options: &NetOptions,
    routes: Routes,
    shutdown: impl Future<Output = ()>,
) -> Result<(), NetError> {
    serve_traffic(listener, options, routes, Traffic::Tensors, shutdown).await
}

async fn serve_traffic(
    listener: Listener,
    options: &NetOptions,
    routes: Routes,
    traffic: Traffic,
    shutdown: impl Future<Output = ()>,
) -> Result<(), NetError> {
    let Listener { listener, address } = listener;
    let mut builder = Server::builder()
        .http2_keepalive_interval(Some(options.keep_alive_interval()))
        .http2_keepalive_timeout(Some(options.keep_alive_timeout()))
        .tcp_nodelay(true)
        .max_frame_size(traffic.frame_bytes())
        .initial_stream_window_size(traffic.stream_window_bytes())
        .initial_connection_window_size(traffic.connection_window_bytes());
    if let Some(files) = &options.tls {
        builder = builder.tls_config(server_tls(files)?).map_err(tls_error)?;
    }
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
    let server = builder.add_routes(routes).serve_with_incoming_shutdown(incoming, async {
        let _ = stopped.await;
    });
    tokio::pin!(server);
    let fail = |error: tonic::transport::Error| NetError::Serve { address, cause: chain(&error) };
    tokio::select! {
        outcome = &mut server => return outcome.map_err(fail),
        () = shutdown => {}
    }
    let _ = stop.send(());
    match tokio::time::timeout(options.failure_detection, server).await {
        Ok(outcome) => outcome.map_err(fail),
        // Followers of logs and jobs would hold the process for ever.
        Err(_) => Ok(()),
    }
}

fn client_tls(files: &TlsFiles) -> Result<ClientTlsConfig, NetError> {
    let identity = Identity::from_pem(read(&files.cert)?, read(&files.key)?);
    Ok(ClientTlsConfig::new().identity(identity).ca_certificate(Certificate::from_pem(read(&files.ca)?)))
}

fn server_tls(files: &TlsFiles) -> Result<ServerTlsConfig, NetError> {
    let identity = Identity::from_pem(read(&files.cert)?, read(&files.key)?);
    Ok(ServerTlsConfig::new().identity(identity).client_ca_root(Certificate::from_pem(read(&files.ca)?)))
}

fn read(path: &Path) -> Result<Vec<u8>, NetError> {
    std::fs::read(path).map_err(|source| NetError::TlsFile { path: path.to_owned(), source })
}

fn tls_error(error: tonic::transport::Error) -> NetError {
    NetError::Tls { cause: chain(&error) }
}

/// Whether a call failed on its way and not in the server: another try, or another address, may help.
/// A call cut off by a partition may come back as Cancelled first and as Unavailable later.
pub fn is_unreachable(status: &tonic::Status) -> bool {
    use tonic::Code;
    match status.code() {
        Code::Unavailable => true,
        Code::Cancelled | Code::Unknown | Code::DeadlineExceeded => status.source().is_some(),
        _ => false,
    }
}

/// What a failed call means and what to check; the server's own words where the server spoke.
pub fn describe(url: &str, status: &tonic::Status) -> String {
    if !is_unreachable(status) || status.source().is_none() {
        return status.message().to_owned();
    }
    let cause = format!("{}: {}", status.message(), chain(status)).to_lowercase();
    let has = |words: &[&str]| words.iter().any(|word| cause.contains(word));
    if has(&["received fatal alert"]) {
        let text = "it refuses this side's certificate; check that it comes from the ca that is given there and is in \
                    date";
        format!("{url}: {text} ({})", last(status))
    } else if has(&["unknownissuer"]) {
        let text = "its certificate does not come from the given ca; check --tls-ca on both sides";
        format!("{url}: {text} ({})", last(status))
    } else if has(&["notvalidforname"]) {
        format!("{url}: its certificate does not name the host; dial a name that it has ({})", last(status))
    } else if has(&["certificate", "handshake", "alert", "tls", "corrupt message"]) {
        let text = "TLS was refused; check that both sides use TLS or neither does, and that certificates are in date";
        format!("{url}: {text} ({})", last(status))
    } else if has(&["refused"]) {
        format!("{url}: connection refused; check the address and that the coordinator runs there")
    } else if has(&["dns", "lookup", "name or service not known", "name resolution"]) {
        format!("{url}: the host name is not known; check the address")
    } else if has(&["timed out", "timeout", "deadline", "keep-alive", "keepalive", "unreachable"]) {
        format!("{url}: no answer in time; check the network and firewalls between here and there")
    } else if has(&["broken pipe", "reset", "closed", "protocol", "frame", "eof"]) {
        // A server that refuses a certificate closes the connection; its reason may be lost on the way.
        let text = "the connection was closed; check that it is retort that listens there, that both sides use TLS or \
                    neither does, and whether it refuses this side's certificate, which must come from the ca given there";
        format!("{url}: {text} ({})", last(status))
    } else {
        format!("{url}: cannot be reached ({})", last(status))
    }
}

/// An error with its causes, without repetitions.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let part = cause.to_string();
        if !text.contains(&part) {
            text = format!("{text}: {part}");
        }
        source = cause.source();
    }
    text
}

/// The innermost cause, which says most.
fn last(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}

#[cfg(test)]
mod certificates;
#[cfg(test)]
mod tls_tests;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::jobs_client::JobsClient;
    use crate::proto::{GetRequest, ListWorkersRequest};

    fn quick() -> NetOptions {
        NetOptions { tls: None, failure_detection: Duration::from_millis(300) }
    }

    #[tokio::test]
    async fn addresses_are_checked_and_completed() {
        assert!(channel("127.0.0.1:7070", &quick()).is_ok());
        assert!(channel("http://localhost:7070", &quick()).is_ok());
        for (text, says) in
            [("", "not an address"), ("http://", "not an address"), ("localhost", "port is missing")]
        {
            let error = channel(text, &quick()).unwrap_err().to_string();
            assert!(error.contains(says), "{text:?}: {error}");
        }
        let error = channel("https://localhost:7070", &quick()).unwrap_err().to_string();
        assert!(error.contains("needs TLS"), "{error}");
    }

    #[tokio::test]
    async fn a_refused_connection_says_what_to_check() {
        let address = bind("127.0.0.1:0").await.unwrap().address().to_string();
        let mut client = JobsClient::new(channel(&address, &quick()).unwrap());
        let status = client.list_workers(ListWorkersRequest {}).await.unwrap_err();
        assert!(is_unreachable(&status), "{status:?}");
        let text = describe(&address, &status);
        assert!(text.contains("refused") && text.contains("check"), "{text}");
    }

    #[tokio::test]
    async fn a_server_answers_in_its_own_words_and_stops_when_told() {
        let listener = bind("127.0.0.1:0").await.unwrap();
        let address = listener.address().to_string();
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let server = tokio::spawn(async move {
            serve(listener, &quick(), Routes::default(), async { drop(stopped.await) }).await
        });
        let mut client = JobsClient::new(channel(&address, &quick()).unwrap());
        let status = client.get(GetRequest { job_id: "x".into() }).await.unwrap_err();
        assert_eq!(status.code(), tonic::Code::Unimplemented);
        assert!(!is_unreachable(&status));
        stop.send(()).unwrap();
        server.await.unwrap().unwrap();
    }
}
