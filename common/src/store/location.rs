//! Files and folders anywhere, by URL, path or name on the hub.

use super::*;

/// A file or folder by URL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Location(Url);

impl Location {
    /// A URL, a model on the hub (`hf:org/name@revision`), or a path relative to the working directory.
    pub fn parse(text: &str) -> Result<Self, StoreError> {
        let fail = |cause: String| StoreError::Url { text: text.to_owned(), cause };
        if let Some(rest) = text.strip_prefix(HUB) {
            let hub = HubPath::parse(rest.trim_start_matches('/'))
                .ok_or_else(|| fail("not hf:org/name@revision".to_owned()))?;
            return Url::parse(&hub.reference()).map(Self).map_err(|error| fail(error.to_string()));
        }
        if text.contains("://") {
            return Url::parse(text).map(Self).map_err(|error| fail(error.to_string()));
        }
        let path = std::path::absolute(text).map_err(|error| fail(error.to_string()))?;
        Self::of_path(&path)
    }

    /// An absolute path.
    pub fn of_path(path: &Path) -> Result<Self, StoreError> {
        let fail =
            || StoreError::Url { text: path.display().to_string(), cause: "not an absolute path".into() };
        Url::from_file_path(path).map(Self).map_err(|()| fail())
    }

    /// `text` relative to this folder; a URL or an absolute path stands for itself.
    pub fn join(&self, text: &str) -> Result<Self, StoreError> {
        if text.contains("://") || text.starts_with(HUB) || Path::new(text).is_absolute() {
            return Self::parse(text);
        }
        if let Some(hub) = self.hub() {
            return Self::parse(&format!("{}/{text}", hub.reference()));
        }
        let fail = |cause: &str| StoreError::Url { text: text.to_owned(), cause: cause.to_owned() };
        let mut url = self.0.clone();
        {
            let mut segments = url.path_segments_mut().map_err(|()| fail("not a folder"))?;
            segments.pop_if_empty();
            for part in text.split('/').filter(|part| !part.is_empty() && *part != ".") {
                if part == ".." {
                    segments.pop();
                } else {
                    segments.push(part);
                }
            }
        }
        Ok(Self(url))
    }

    /// The model or file on the Hugging Face hub that it names.
    pub fn hub(&self) -> Option<HubPath> {
        self.0.as_str().strip_prefix(HUB).and_then(HubPath::parse)
    }

    /// The local path, where it is one or stands in the hub's cache.
    pub fn local_path(&self) -> Option<std::path::PathBuf> {
        if let Some(hub) = self.hub() {
            return hub.cached();
        }
        (self.0.scheme() == "file").then(|| self.0.to_file_path().ok()).flatten()
    }

    /// The files that `pattern`, relative to this folder, stands for, sorted: those that a glob matches (`*`, `?` and
    /// `[…]` within a name), those in a folder, or the file itself, whether it exists or not. Names that begin with a
    /// dot are left out.
    pub async fn expand(&self, pattern: &str) -> Result<Vec<Self>, StoreError> {
        let is_glob = |part: &str| part.contains(['*', '?', '[']);
        let parts: Vec<&str> = pattern.split('/').collect();
        // The scheme and host of a URL hold no wildcard.
        let fixed = parts.iter().position(|part| is_glob(part)).unwrap_or(parts.len());
        if fixed == parts.len() {
            let location = self.join(pattern)?;
            let inside = location.names().await?;
            let files = inside.into_iter().filter(|(name, is_folder)| !is_folder && !name.starts_with('.'));
            let files = files.map(|(name, _)| location.join(&name)).collect::<Result<Vec<_>, _>>()?;
            return Ok(if files.is_empty() { vec![location] } else { files });
        }
        let prefix = parts[..fixed].join("/");
        let mut folders = vec![if pattern.starts_with('/') && prefix.is_empty() {
            self.join("/")?
        } else {
            self.join(&prefix)?
        }];
        for (at, part) in parts.iter().enumerate().skip(fixed) {
            let last = at + 1 == parts.len();
            let mut next = Vec::new();
            for folder in folders {
                if !is_glob(part) {
                    next.push(folder.join(part)?);
                    continue;
                }
                for (name, is_folder) in folder.names().await? {
                    if is_folder != last
                        && !name.starts_with('.')
                        && matches(part.as_bytes(), name.as_bytes())
                    {
                        next.push(folder.join(&name)?);
                    }
                }
            }
            folders = next;
        }
        Ok(folders)
    }

    /// Every file below this folder, sorted, down to a few folders deep; nothing where this is no folder. Names that
    /// begin with a dot are left out.
    pub async fn below(&self) -> Result<Vec<Self>, StoreError> {
        const DEEPEST: usize = 4;
        let (mut files, mut open) = (Vec::new(), vec![(self.clone(), 0)]);
        while let Some((folder, depth)) = open.pop() {
            for (name, is_folder) in folder.names().await? {
                let inside = folder.join(&name)?;
                match is_folder {
                    _ if name.starts_with('.') => {}
                    true if depth < DEEPEST => open.push((inside, depth + 1)),
                    true => {}
                    false => files.push(inside),
                }
            }
        }
        files.sort_by_key(Self::to_string);
        Ok(files)
    }

    /// What lies in this folder, sorted by name, and whether it is a folder; nothing where this is none.
    async fn names(&self) -> Result<Vec<(String, bool)>, StoreError> {
        let mut names = Vec::new();
        if let Some(path) = self.local_path() {
            let Ok(entries) = std::fs::read_dir(&path) else { return Ok(names) };
            for entry in entries {
                let fail = |source| StoreError::Folder { url: self.to_string(), source };
                let entry = entry.map_err(fail)?;
                let Ok(name) = entry.file_name().into_string() else { continue };
                names.push((name, entry.path().is_dir()));
            }
        } else {
            let (store, path) = self.object()?;
            let found = store.list_with_delimiter(Some(&path)).await.map_err(backend(self.to_string()))?;
            let name = |path: &ObjectPath| path.filename().unwrap_or_default().to_owned();
            names.extend(found.objects.iter().map(|object| (name(&object.location), false)));
            names.extend(found.common_prefixes.iter().map(|prefix| (name(prefix), true)));
        }
        names.sort();
        Ok(names)
    }

    pub(super) fn object(&self) -> Result<(Arc<dyn ObjectStore>, ObjectPath), StoreError> {
        let fail =
            |error: object_store::Error| StoreError::Url { text: self.to_string(), cause: error.to_string() };
        if let Some(path) = self.hub().and_then(|hub| hub.cached()) {
            let url = Url::from_file_path(&path).map_err(|()| StoreError::Url {
                text: self.to_string(),
                cause: format!("{} is not absolute", path.display()),
            })?;
            let (store, path) = object_store::parse_url(&url).map_err(fail)?;
            return Ok((store.into(), path));
        }
        if matches!(self.0.scheme(), "http" | "https") {
            return self.web();
        }
        let (store, path) = object_store::parse_url_opts(&self.0, environment(&self.0)).map_err(fail)?;
        Ok((store.into(), path))
    }

    /// A web server, which is asked a few times only: a place that cannot be reached is said at once.
    fn web(&self) -> Result<(Arc<dyn ObjectStore>, ObjectPath), StoreError> {
        let fail =
            |error: object_store::Error| StoreError::Url { text: self.to_string(), cause: error.to_string() };
        let mut root = self.0.clone();
        root.set_path("/");
        root.set_query(None);
        let retry = object_store::RetryConfig {
            max_retries: 2,
            retry_timeout: WEB_PATIENCE,
            ..object_store::RetryConfig::default()
        };
        let mut options = object_store::ClientOptions::new().with_allow_http(true);
        if let Some(token) = crate::hub::token(&self.0) {
            let mut headers = http::HeaderMap::new();
            headers.insert(http::header::AUTHORIZATION, token);
            options = options.with_default_headers(headers);
        }
        let store = object_store::http::HttpBuilder::new()
            .with_url(root.as_str())
            .with_retry(retry)
            .with_client_options(options)
            .build()
            .map_err(fail)?;
        let path = ObjectPath::from_url_path(self.0.path())
            .map_err(|error| StoreError::Url { text: self.to_string(), cause: error.to_string() })?;
        Ok((Arc::new(store), path))
    }

    /// The file's bytes, or nothing where no file is.
    pub async fn stream(&self) -> Result<Option<ByteStream>, StoreError> {
        if self.local_path().is_some_and(|path| path.is_dir()) {
            return Ok(None);
        }
        if let Some(hub) = self.hub().filter(|hub| hub.cached().is_none()) {
            return Box::pin(crate::hub::stream(&hub)).await;
        }
        let (store, path) = self.object()?;
        let fail = backend(self.to_string());
        match store.get(&path).await {
            Ok(result) => Ok(Some(Box::pin(result.into_stream().map_err(fail)))),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(fail(error)),
        }
    }
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Whether a name matches a glob of `*`, `?` and `[…]`.
fn matches(pattern: &[u8], name: &[u8]) -> bool {
    match (pattern, name) {
        ([], rest) => rest.is_empty(),
        ([b'*', rest @ ..], _) => (0..=name.len()).any(|skip| matches(rest, &name[skip..])),
        ([b'?', rest @ ..], [_, tail @ ..]) => matches(rest, tail),
        ([b'[', rest @ ..], [first, tail @ ..]) => match rest.iter().position(|byte| *byte == b']') {
            Some(end) => in_class(&rest[..end], *first) && matches(&rest[end + 1..], tail),
            None => *first == b'[' && matches(rest, tail),
        },
        ([own, rest @ ..], [first, tail @ ..]) => own == first && matches(rest, tail),
        (_, []) => false,
    }
}

/// Whether a byte is in a class such as `abc`, `0-9` or `!x`.
fn in_class(class: &[u8], byte: u8) -> bool {
    let (negated, class) = match class {
        [b'!' | b'^', rest @ ..] => (true, rest),
        _ => (false, class),
    };
    let range = class.windows(3).any(|part| part[1] == b'-' && (part[0]..=part[2]).contains(&byte));
    (range || class.contains(&byte)) != negated
}

/// Credentials and endpoints of cloud stores come from the environment (AWS_*, GOOGLE_*, AZURE_*).
fn environment(url: &Url) -> Vec<(String, String)> {
    let prefix = match url.scheme() {
        "s3" | "s3a" => "AWS_",
        "gs" => "GOOGLE_",
        "az" | "azure" | "abfs" | "abfss" | "adl" => "AZURE_",
        _ => return Vec::new(),
    };
    std::env::vars()
        .filter(|(key, _)| key.starts_with(prefix))
        .map(|(key, value)| (key.to_lowercase(), value))
        .collect()
}
