//! Object storage: the store of a cluster, and files anywhere that specs name.
//!
//! - [`Location`]: a file or folder by URL or path, for inputs
//! - [`Store`]: the cluster's own root, with put-if-absent, the one primitive that commits anything

mod location;

pub use location::Location;

use crate::hub::HubPath;
use bytes::Bytes;
use futures::{Stream, StreamExt, TryStreamExt};
use object_store::path::Path as ObjectPath;
use object_store::{ObjectStore, ObjectStoreExt, PutMode, PutPayload};
use std::fmt;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;
use url::Url;

/// Tries of a store operation before its error is passed on.
const TRIES: u32 = 5;
/// How long a web server is asked again.
const WEB_PATIENCE: Duration = Duration::from_secs(20);
/// What a reference to the Hugging Face hub begins with.
const HUB: &str = "hf:";
/// First pause between tries; doubles each time.
const FIRST_PAUSE: Duration = Duration::from_millis(100);

/// What can go wrong with a store.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A URL that names no store.
    #[error("{text:?} is no place: {cause}; use a path or a file://, s3://, gs://, az:// or memory:// URL")]
    Url {
        /// As given.
        text: String,
        /// What is wrong with it.
        cause: String,
    },
    /// A local folder that cannot be the store.
    #[error("{url}: cannot make this folder the store: {source}; name one that can be written")]
    Folder {
        /// The folder.
        url: String,
        /// The cause.
        source: std::io::Error,
    },
    /// An object that should be there.
    #[error("{path}: does not exist")]
    Missing {
        /// The object.
        path: String,
    },
    /// The store answered with an error, or not at all.
    #[error("{path}: {source}")]
    Backend {
        /// The object.
        path: String,
        /// The cause.
        source: object_store::Error,
    },
    /// A model that is neither in the hub's cache nor to be had from the hub.
    #[error(
        "{reference}: not in the cache {cache}, and not to be had from the Hugging Face hub: {cause}; run \
         `{remedy}` where there is a network and copy the cache here, or name the model's folder instead"
    )]
    Hub {
        /// The model or the file.
        reference: String,
        /// Where it was looked for.
        cache: String,
        /// What went wrong on the way to the hub.
        cause: String,
        /// The command that fetches it.
        remedy: String,
    },
    /// The store let the same key be created twice.
    #[error(
        "{url}: the store creates a key twice and so cannot commit anything; \
         use one that honours put-if-absent (If-None-Match)"
    )]
    NoPutIfAbsent {
        /// The store.
        url: String,
    },
}

impl StoreError {
    /// Whether trying again later may help.
    pub fn is_transient(&self) -> bool {
        use object_store::Error as E;
        match self {
            StoreError::Backend { source, .. } => !matches!(
                source,
                E::NotFound { .. }
                    | E::AlreadyExists { .. }
                    | E::PermissionDenied { .. }
                    | E::Unauthenticated { .. }
                    | E::NotSupported { .. }
                    | E::NotImplemented { .. }
                    | E::InvalidPath { .. }
                    | E::UnknownConfigurationKey { .. }
            ),
            _ => false,
        }
    }
}

/// Whether a put-if-absent wrote.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Put {
    /// The object was not there and is now.
    Created,
    /// An object was there; it is untouched.
    Exists,
}

/// A stream of an object's bytes.
pub type ByteStream = Pin<Box<dyn Stream<Item = Result<Bytes, StoreError>> + Send>>;

fn backend(path: String) -> impl Fn(object_store::Error) -> StoreError {
    move |source| StoreError::Backend { path: path.clone(), source }
}

/// The object store under a cluster's root. Paths are relative to the root.
#[derive(Clone)]
pub struct Store {
    objects: Arc<dyn ObjectStore>,
    root: ObjectPath,
    url: Location,
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Store({})", self.url)
    }
}

impl Store {
    /// Opens the store at a URL or path; a local folder is created.
    pub fn open(url: &str) -> Result<Self, StoreError> {
        let url = Location::parse(url)?;
        if let Some(path) = url.local_path() {
            let fail = |source| StoreError::Folder { url: url.to_string(), source };
            std::fs::create_dir_all(&path).map_err(fail)?;
            let local = object_store::local::LocalFileSystem::new_with_prefix(&path)
                .map_err(backend(url.to_string()))?
                .with_fsync(true);
            return Ok(Self { objects: Arc::new(local), root: ObjectPath::default(), url });
        }
        let (objects, root) = url.object()?;
        Ok(Self { objects, root, url })
    }

    /// A store over any implementation, for simulation.
    pub fn over(objects: Arc<dyn ObjectStore>, url: Location) -> Self {
        Self { objects, root: ObjectPath::default(), url }
    }

    /// The URL of the root.
    pub fn url(&self) -> String {
        self.url.to_string()
    }

    /// The URL of an object, for people.
    pub fn url_of(&self, path: &str) -> String {
        self.url.join(path).map_or_else(|_| path.to_owned(), |url| url.to_string())
    }

    fn path(&self, path: &str) -> ObjectPath {
        path.split('/').filter(|part| !part.is_empty()).fold(self.root.clone(), |root, part| root.join(part))
    }

    /// Creates the probe key twice: a store that lets both succeed is refused.
    pub async fn check(&self, nonce: &str) -> Result<(), StoreError> {
        let path = format!("probe/{nonce}");
        let first = self.put_if_absent(&path, Bytes::from_static(b"1")).await?;
        let second = self.put_if_absent(&path, Bytes::from_static(b"2")).await?;
        self.delete(&path).await?;
        match (first, second) {
            (Put::Created, Put::Exists) => Ok(()),
            _ => Err(StoreError::NoPutIfAbsent { url: self.url() }),
        }
    }

    /// One try of creating an object, without interpretation of ambiguous answers: the journal has its own rules.
    pub async fn try_create(&self, path: &str, bytes: Bytes) -> Result<Put, StoreError> {
        let payload = PutPayload::from_bytes(bytes);
        match self.objects.put_opts(&self.path(path), payload, PutMode::Create.into()).await {
            Ok(_) => Ok(Put::Created),
            Err(object_store::Error::AlreadyExists { .. }) => Ok(Put::Exists),
            Err(error) => Err(backend(self.url_of(path))(error)),
        }
    }

    /// Creates an object unless one is there. After an ambiguous answer the key is read: an object with the
    /// same bytes counts as created, since bodies that matter carry a nonce.
    pub async fn put_if_absent(&self, path: &str, bytes: Bytes) -> Result<Put, StoreError> {
        let mut pause = FIRST_PAUSE;
        let mut ambiguous = false;
        for attempt in 1.. {
            match self.try_create(path, bytes.clone()).await {
                Ok(Put::Created) => return Ok(Put::Created),
                Ok(Put::Exists) => match self.get(path).await {
                    Ok(found) if ambiguous && found == bytes => return Ok(Put::Created),
                    Ok(_) => return Ok(Put::Exists),
                    // Some stores answer "exists" to a conflict that stored nothing.
                    Err(StoreError::Missing { .. }) if attempt < TRIES => {}
                    Err(error) => return Err(error),
                },
                Err(error) if error.is_transient() && attempt < TRIES => ambiguous = true,
                Err(error) => return Err(error),
            }
            tokio::time::sleep(pause).await;
            pause *= 2;
        }
        unreachable!("the loop returns at the last try")
    }

    /// Writes an object, replacing what is there.
    pub async fn put(&self, path: &str, bytes: Bytes) -> Result<(), StoreError> {
        let (target, payload) = (self.path(path), PutPayload::from_bytes(bytes));
        self.retry(path, || async { self.objects.put(&target, payload.clone()).await.map(drop) }).await
    }

    /// A whole object.
    pub async fn get(&self, path: &str) -> Result<Bytes, StoreError> {
        let target = self.path(path);
        self.retry(path, || async { self.objects.get(&target).await?.bytes().await }).await
    }

    /// An object's bytes as they arrive.
    pub async fn stream(&self, path: &str) -> Result<ByteStream, StoreError> {
        let target = self.path(path);
        let result = self.retry(path, || self.objects.get(&target)).await?;
        Ok(Box::pin(result.into_stream().map_err(backend(self.url_of(path)))))
    }

    /// Whether an object is there.
    pub async fn exists(&self, path: &str) -> Result<bool, StoreError> {
        let target = self.path(path);
        match self.retry(path, || self.objects.head(&target)).await {
            Ok(_) => Ok(true),
            Err(StoreError::Missing { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Copies an object within the store.
    pub async fn copy(&self, from: &str, to: &str) -> Result<(), StoreError> {
        let (source, target) = (self.path(from), self.path(to));
        self.retry(from, || self.objects.copy(&source, &target)).await
    }

    /// Paths under a prefix, relative to the root, sorted.
    pub async fn list(&self, prefix: &str) -> Result<Vec<String>, StoreError> {
        let root = self.path(prefix);
        let found: Vec<_> = self
            .retry(prefix, || {
                self.objects.list(Some(&root)).map_ok(|meta| meta.location).try_collect::<Vec<_>>()
            })
            .await?;
        let strip = self.root.as_ref().len();
        let mut paths: Vec<_> =
            found.iter().map(|path| path.as_ref()[strip..].trim_start_matches('/').to_owned()).collect();
        paths.sort();
        Ok(paths)
    }

    /// Deletes an object; one that is gone already is fine.
    pub async fn delete(&self, path: &str) -> Result<(), StoreError> {
        let target = self.path(path);
        match self.retry(path, || self.objects.delete(&target)).await {
            Ok(()) | Err(StoreError::Missing { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Uploads a local file in parts of bounded size.
    pub async fn upload(&self, path: &str, file: &Path) -> Result<(), StoreError> {
        const CHUNK: usize = 8 << 20;
        const IN_FLIGHT: usize = 4;
        let io = |error: std::io::Error| StoreError::Backend {
            path: file.display().to_string(),
            source: object_store::Error::Generic { store: "local file", source: Box::new(error) },
        };
        let length = tokio::fs::metadata(file).await.map_err(io)?.len();
        if length <= CHUNK as u64 {
            return self.put(path, tokio::fs::read(file).await.map_err(io)?.into()).await;
        }
        let fail = backend(self.url_of(path));
        let upload = self.objects.put_multipart(&self.path(path)).await.map_err(&fail)?;
        let mut writer = object_store::WriteMultipart::new_with_chunk_size(upload, CHUNK);
        let mut reader = tokio::fs::File::open(file).await.map_err(io)?;
        let mut buffer = vec![0; CHUNK];
        loop {
            let read = tokio::io::AsyncReadExt::read(&mut reader, &mut buffer).await.map_err(io)?;
            if read == 0 {
                break;
            }
            writer.wait_for_capacity(IN_FLIGHT).await.map_err(&fail)?;
            writer.write(&buffer[..read]);
        }
        writer.finish().await.map(drop).map_err(fail)
    }

    async fn retry<T, F>(&self, path: &str, mut operation: impl FnMut() -> F) -> Result<T, StoreError>
    where
        F: Future<Output = object_store::Result<T>>,
    {
        let mut pause = FIRST_PAUSE;
        let mut attempt = 1;
        loop {
            let error = match operation().await {
                Ok(value) => return Ok(value),
                Err(object_store::Error::NotFound { .. }) => {
                    return Err(StoreError::Missing { path: self.url_of(path) });
                }
                Err(error) => backend(self.url_of(path))(error),
            };
            if !error.is_transient() || attempt == TRIES {
                return Err(error);
            }
            attempt += 1;
            tokio::time::sleep(pause).await;
            pause *= 2;
        }
    }
}

/// All of a stream in memory, up to `limit` bytes.
pub async fn read_all(mut stream: ByteStream, what: &str, limit: u64) -> Result<Vec<u8>, StoreError> {
    let mut bytes = Vec::new();
    while let Some(chunk) = stream.next().await {
        bytes.extend_from_slice(&chunk?);
        if bytes.len() as u64 > limit {
            return Err(StoreError::Url {
                text: what.to_owned(),
                cause: format!("larger than {limit} bytes"),
            });
        }
    }
    Ok(bytes)
}
