//! Models on the Hugging Face hub: `hf:org/name@revision`, from the cache that Hugging Face's own tools fill, else
//! from the hub.
//!
//! Files found on the hub are kept in that cache in its own layout, `models--org--name/snapshots/COMMIT/FILE` with
//! `refs/REVISION`, so that a model is fetched once for all tools of a machine.

use crate::store::{ByteStream, Location, StoreError};
use futures::StreamExt;
use std::path::{Path, PathBuf};

/// Where the hub is, unless HF_ENDPOINT says otherwise.
const ENDPOINT: &str = "https://huggingface.co";

/// A file or the folder of a model on the hub.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HubPath {
    /// `name` or `org/name`.
    pub repository: String,
    /// Branch, tag or commit.
    pub revision: String,
    /// The file within the repository; empty for its folder.
    pub file: String,
}

impl HubPath {
    /// Parses what follows `hf:`. Without a revision it is "main".
    pub fn parse(text: &str) -> Option<Self> {
        let parts: Vec<&str> = text.split('/').filter(|part| !part.is_empty()).collect();
        let plain = |part: &&str| {
            let letters = |c: char| c.is_ascii_alphanumeric() || "-_.@".contains(c);
            *part != "." && *part != ".." && part.chars().all(letters)
        };
        if parts.is_empty() || !parts.iter().all(plain) {
            return None;
        }
        // The part with the revision ends the name; without one the name has two parts where there are two.
        let marked = parts.iter().take(2).position(|part| part.contains('@'));
        let end = marked.map_or(parts.len().min(2), |at| at + 1);
        let name = parts[..end].join("/");
        let (repository, revision) = name.split_once('@').unwrap_or((&name, "main"));
        let valid = !repository.is_empty()
            && !repository.ends_with('/')
            && !revision.is_empty()
            && !revision.contains('@');
        valid.then(|| Self {
            repository: repository.to_owned(),
            revision: revision.to_owned(),
            file: parts[end..].join("/"),
        })
    }

    /// Its text as a reference.
    pub fn reference(&self) -> String {
        let Self { repository, revision, file } = self;
        let slash = if file.is_empty() { "" } else { "/" };
        format!("hf:{repository}@{revision}{slash}{file}")
    }

    /// Whether the revision is a commit, which never moves.
    fn is_pinned(&self) -> bool {
        self.revision.len() == 40 && self.revision.bytes().all(|byte| byte.is_ascii_hexdigit())
    }

    fn folder(&self, cache: &Path) -> PathBuf {
        cache.join(format!("models--{}", self.repository.replace('/', "--")))
    }

    /// The file in a cache, whether it is there or not; its revision must be a commit.
    fn in_cache(&self, cache: &Path) -> PathBuf {
        self.folder(cache).join("snapshots").join(&self.revision).join(&self.file)
    }

    /// The file in this machine's cache, if it is there.
    pub fn cached(&self) -> Option<PathBuf> {
        cache().map(|cache| self.in_cache(&cache)).filter(|path| path.is_file())
    }

    /// Where the hub serves the file.
    fn url(&self) -> String {
        format!("{}/{}/resolve/{}/{}", endpoint(), self.repository, self.revision, self.file)
    }

    fn error(&self, cause: impl std::fmt::Display) -> StoreError {
        let cache =
            cache().map_or("no cache (HOME is not set)".to_owned(), |cache| cache.display().to_string());
        let Self { repository, revision, .. } = self;
        StoreError::Hub {
            reference: self.reference(),
            cache,
            cause: cause.to_string(),
            remedy: format!("hf download {repository} --revision {revision}"),
        }
    }
}

fn endpoint() -> String {
    let given = std::env::var("HF_ENDPOINT").ok().filter(|text| !text.is_empty());
    given.map_or_else(|| ENDPOINT.to_owned(), |text| text.trim_end_matches('/').to_owned())
}

/// The user's token, for requests to the hub and to nobody else.
pub fn token(url: &url::Url) -> Option<http::HeaderValue> {
    // With the slash, or "https://hub.example" would also stand for "https://hub.example.org".
    if !url.as_str().starts_with(&format!("{}/", endpoint())) {
        return None;
    }
    let token = std::env::var("HF_TOKEN").ok().filter(|token| !token.is_empty())?;
    let mut value = http::HeaderValue::from_str(&format!("Bearer {token}")).ok()?;
    value.set_sensitive(true);
    Some(value)
}

/// Whether the user forbids looking on the hub.
fn is_offline() -> bool {
    std::env::var("HF_HUB_OFFLINE").is_ok_and(|value| !matches!(value.as_str(), "" | "0" | "false" | "no"))
}

/// The cache folder of Hugging Face's tools, by the same variables.
fn cache() -> Option<PathBuf> {
    let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    variable("HF_HUB_CACHE")
        .or_else(|| variable("HUGGINGFACE_HUB_CACHE"))
        .or_else(|| variable("HF_HOME").map(|home| home.join("hub")))
        .or_else(|| variable("XDG_CACHE_HOME").map(|home| home.join("huggingface/hub")))
        .or_else(|| variable("HOME").map(|home| home.join(".cache/huggingface/hub")))
}

/// A folder with its revision replaced by the commit that it names now; other places stay as they are. What a job
/// records then never moves.
pub async fn pin(folder: Location) -> Result<Location, StoreError> {
    let Some(hub) = folder.hub() else { return Ok(folder) };
    if hub.is_pinned() {
        return Ok(folder);
    }
    let cached = cache().map(|cache| hub.folder(&cache).join("refs").join(&hub.revision));
    let cached = cached.and_then(|path| std::fs::read_to_string(path).ok());
    let at = |commit: &str| {
        let pinned = HubPath { revision: commit.to_owned(), ..hub.clone() };
        if pinned.is_pinned() { Location::parse(&pinned.reference()).ok() } else { None }
    };
    if let Some(location) = cached.as_deref().and_then(|commit| at(commit.trim())) {
        return Ok(location);
    }
    if is_offline() {
        return Err(hub.error("HF_HUB_OFFLINE is set"));
    }
    let api = format!("{}/api/models/{}/revision/{}", endpoint(), hub.repository, hub.revision);
    let bytes = fetch(&hub, &api).await?.ok_or_else(|| hub.error("there is no such model or revision"))?;
    let answer: serde_json::Value = serde_json::from_slice(&bytes).map_err(|error| hub.error(error))?;
    let commit = answer["sha"].as_str().unwrap_or_default();
    let location = at(commit).ok_or_else(|| hub.error("the hub's answer names no commit"))?;
    if let Some(cache) = cache() {
        let path = hub.folder(&cache).join("refs").join(&hub.revision);
        // Only a convenience for the next time: what matters is in the location.
        let _ = path
            .parent()
            .map(std::fs::create_dir_all)
            .transpose()
            .and_then(|_| std::fs::write(&path, commit));
    }
    Ok(location)
}

async fn fetch(hub: &HubPath, url: &str) -> Result<Option<Vec<u8>>, StoreError> {
    /// Largest answer about a model that is read.
    const ANSWER_BYTES: usize = 16 << 20;
    let Some(mut stream) = Location::parse(url)?.stream().await.map_err(|error| hub.error(error))? else {
        return Ok(None);
    };
    let mut bytes = Vec::new();
    while let Some(chunk) = stream.next().await {
        bytes.extend_from_slice(&chunk.map_err(|error| hub.error(error))?);
        if bytes.len() > ANSWER_BYTES {
            return Err(hub.error("the hub's answer is too long"));
        }
    }
    Ok(Some(bytes))
}

/// The bytes of a file, or nothing where there is none. A file on the hub is put into the cache first. With a part of
/// the model in the cache and no way to the hub, a file that the cache lacks counts as absent.
pub async fn optional(file: &Location) -> Result<Option<ByteStream>, StoreError> {
    let Some(hub) = file.hub() else { return file.stream().await };
    if hub.cached().is_some() {
        return file.stream().await;
    }
    let Some(cache) = cache() else { return stream(&hub).await };
    let known = HubPath { file: "config.json".to_owned(), ..hub.clone() }.in_cache(&cache).is_file();
    match stream(&hub).await {
        Ok(None) => Ok(None),
        Ok(Some(bytes)) => {
            keep(&hub, bytes, &hub.in_cache(&cache)).await?;
            file.stream().await
        }
        Err(StoreError::Hub { .. }) if known => Ok(None),
        Err(error) => Err(error),
    }
}

/// The bytes of a file on the hub.
pub async fn stream(hub: &HubPath) -> Result<Option<ByteStream>, StoreError> {
    if is_offline() {
        return Err(hub.error("HF_HUB_OFFLINE is set"));
    }
    Location::parse(&hub.url())?.stream().await.map_err(|error| hub.error(error))
}

/// Writes a stream to a file that appears whole or not at all.
async fn keep(hub: &HubPath, mut bytes: ByteStream, path: &Path) -> Result<(), StoreError> {
    use tokio::io::AsyncWriteExt;
    let fail = |error: std::io::Error| hub.error(format!("{}: {error}", path.display()));
    let folder = path.parent().unwrap_or(path);
    tokio::fs::create_dir_all(folder).await.map_err(fail)?;
    let temporary = path.with_extension(format!("{}.incomplete", uuid::Uuid::new_v4().simple()));
    let mut file = tokio::fs::File::create(&temporary).await.map_err(fail)?;
    while let Some(chunk) = bytes.next().await {
        let chunk = match chunk {
            Ok(chunk) => chunk,
            Err(error) => {
                let _ = tokio::fs::remove_file(&temporary).await;
                return Err(hub.error(error));
            }
        };
        file.write_all(&chunk).await.map_err(fail)?;
    }
    file.sync_all().await.map_err(fail)?;
    tokio::fs::rename(&temporary, path).await.map_err(fail)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_are_parsed_and_printed() {
        let check = |text: &str, expected: Option<&str>| {
            assert_eq!(HubPath::parse(text).map(|hub| hub.reference()).as_deref(), expected, "{text:?}");
        };
        check("org/name", Some("hf:org/name@main"));
        check("org/name@v1", Some("hf:org/name@v1"));
        check("name", Some("hf:name@main"));
        check("name@v1/1_Pooling/config.json", Some("hf:name@v1/1_Pooling/config.json"));
        check("org/name@abc/config.json", Some("hf:org/name@abc/config.json"));
        check("org/name/sub", Some("hf:org/name@main/sub"));
        check("", None);
        check("org/../name", None);
        check("org/na me", None);
        check("org/@v1", None);
        check("org/name@", None);
    }
}
