//! Where the coordinator is: flag or environment first, then the config file.

use crate::args::{Connect, Tls};
use crate::exit::UsageError;
use anyhow::Context;
use directories::ProjectDirs;
use retort_common::client::Client;
use retort_common::net::{NetOptions, TlsFiles};
use serde::Deserialize;
use std::io;
use std::path::PathBuf;

/// The config file's keys.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct ConfigFile {
    /// Address of the coordinator; several with commas between.
    coordinator: Option<String>,
    tls_cert: Option<PathBuf>,
    tls_key: Option<PathBuf>,
    tls_ca: Option<PathBuf>,
}

/// The folders that belong to this program and user, where the user has a home.
pub fn directories() -> Option<ProjectDirs> {
    ProjectDirs::from("", "", "retort")
}

/// The coordinator's addresses and how to dial them.
pub fn resolve(connect: &Connect) -> anyhow::Result<(Vec<String>, NetOptions)> {
    let path = directories().map(|folders| folders.config_dir().join("config.toml"));
    let file = match &path {
        Some(path) => read(path)?,
        None => ConfigFile::default(),
    };
    let mut addresses = connect.coordinator.clone();
    if addresses.is_empty() {
        addresses = file.coordinator.iter().flat_map(|text| text.split(',')).map(str::to_owned).collect();
    }
    addresses = addresses.iter().map(|text| text.trim().to_owned()).filter(|text| !text.is_empty()).collect();
    if addresses.is_empty() {
        let path = path.map_or_else(|| "the config file".to_owned(), |path| path.display().to_string());
        return Err(UsageError(format!(
            "no coordinator's address is given: use --coordinator http://HOST:PORT, set RETORT_COORDINATOR, or write \
             coordinator = \"http://HOST:PORT\" in {path}"
        ))
        .into());
    }
    let given = connect.tls.clone();
    let tls = Tls {
        tls_cert: given.tls_cert.or(file.tls_cert),
        tls_key: given.tls_key.or(file.tls_key),
        tls_ca: given.tls_ca.or(file.tls_ca),
    };
    Ok((addresses, NetOptions { tls: tls_files(&tls)?, ..NetOptions::default() }))
}

/// A client of the coordinator that flags, environment or config file name.
pub fn client(connect: &Connect) -> anyhow::Result<Client> {
    let (addresses, options) = resolve(connect)?;
    Ok(Client::new(&addresses, &options)?)
}

/// All three files or none.
pub fn tls_files(tls: &Tls) -> Result<Option<TlsFiles>, UsageError> {
    match (tls.tls_cert.clone(), tls.tls_key.clone(), tls.tls_ca.clone()) {
        (Some(cert), Some(key), Some(ca)) => Ok(Some(TlsFiles { cert, key, ca })),
        (None, None, None) => Ok(None),
        _ => Err(UsageError(
            "--tls-cert, --tls-key and --tls-ca go together: give all three or none".to_owned(),
        )),
    }
}

fn read(path: &std::path::Path) -> anyhow::Result<ConfigFile> {
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(ConfigFile::default()),
        Err(error) => return Err(error).with_context(|| format!("cannot read {}", path.display())),
    };
    toml::from_str(&text).map_err(|error| UsageError(format!("{}: {error}", path.display())).into())
}
