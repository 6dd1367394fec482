//! Mutual TLS: who is let in, and what the others are told.

use super::certificates::Authority;
use super::*;
use crate::proto::GetRequest;
use crate::proto::jobs_client::JobsClient;

fn files([cert, key, ca]: [PathBuf; 3]) -> TlsFiles {
    TlsFiles { cert, key, ca }
}

fn options(tls: Option<TlsFiles>) -> NetOptions {
    NetOptions { tls, failure_detection: Duration::from_millis(1500) }
}

/// What a client with `client` hears from a server with `server`: nothing if it is let in.
async fn outcome(server: Option<TlsFiles>, client: Option<TlsFiles>, tensors: bool) -> Option<String> {
    let listener = bind("127.0.0.1:0").await.unwrap();
    let address = listener.address().to_string();
    let server = options(server);
    let served = tokio::spawn(async move {
        let never = std::future::pending();
        match tensors {
            true => serve_tensors(listener, &server, Routes::default(), never).await,
            false => serve(listener, &server, Routes::default(), never).await,
        }
    });
    let client = options(client);
    let channel =
        if tensors { tensor_channel(&address, &client) } else { channel(&address, &client) }.unwrap();
    let status = JobsClient::new(channel).get(GetRequest { job_id: "x".into() }).await.unwrap_err();
    served.abort();
    // A server without services answers just so to whom it lets in.
    (status.code() != tonic::Code::Unimplemented).then(|| describe(&address, &status))
}

#[tokio::test]
async fn only_holders_of_certificates_from_the_authority_are_let_in() {
    let folder = tempfile::tempdir().unwrap();
    let (site, other) = (Authority::new(folder.path(), "site"), Authority::new(folder.path(), "other"));
    let names = ["localhost", "127.0.0.1"];
    let here = files(site.issue("here", &names));
    let there = files(site.issue("there", &names));
    let stranger = files(other.issue("stranger", &names));
    let elsewhere = files(site.issue("elsewhere", &["elsewhere.example"]));
    // It trusts the server, but shows a certificate that the server does not trust.
    let intruder = TlsFiles { ca: here.ca.clone(), ..stranger.clone() };
    let cases = [
        (Some(&here), Some(&there), ""),
        (Some(&here), Some(&intruder), "refuses this side's certificate"),
        (Some(&here), Some(&stranger), "does not come from the given ca"),
        (Some(&elsewhere), Some(&there), "does not name the host"),
        (Some(&here), None, "TLS"),
        (None, Some(&there), "TLS"),
    ];
    for tensors in [false, true] {
        for (server, client, says) in cases {
            match outcome(server.cloned(), client.cloned(), tensors).await {
                None => assert_eq!(says, "", "{server:?} lets in {client:?}"),
                Some(text) => assert!(!says.is_empty() && text.contains(says), "{client:?} hears {text}"),
            }
        }
    }
}

#[tokio::test]
async fn files_that_cannot_be_used_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let here = files(Authority::new(folder.path(), "site").issue("here", &["localhost"]));
    let missing = TlsFiles { key: folder.path().join("nothing.key"), ..here.clone() };
    let error = channel("localhost:1", &options(Some(missing))).unwrap_err().to_string();
    assert!(error.contains("nothing.key"), "{error}");
    let swapped = TlsFiles { cert: here.key.clone(), key: here.cert.clone(), ..here };
    let error = channel("localhost:1", &options(Some(swapped))).unwrap_err().to_string();
    assert!(error.contains("PEM"), "{error}");
}
