//! A peer that breaks the rules is refused by name, and nothing it sends is averaged in.

use super::*;
use bytes::Bytes;
use frame::{Chunk, Outgoing, Part, Reader, message};
use futures::stream;
use http::Request;
use tonic::Status;
use tower::{Service, ServiceExt};

const LENGTH: usize = 1000;

/// A call without any of the care that an exchange takes.
async fn call(address: &str, method: &str, parts: Vec<Part>) -> Result<Reader, Status> {
    let mut channel = net::tensor_channel(address, &net(None)).unwrap();
    let request = Request::post(format!("/{}/{method}", service::NAME))
        .header("te", "trailers")
        .header("content-type", "application/grpc")
        .body(Outgoing::body(stream::iter(parts)))
        .unwrap();
    let broken = |error: tonic::transport::Error| Status::unavailable(error.to_string());
    let response = channel.ready().await.map_err(broken)?.call(request).await.map_err(broken)?;
    match Status::from_header_map(response.headers()) {
        Some(status) if status.code() != tonic::Code::Ok => Err(status),
        _ => Ok(Reader::response(response.into_body())),
    }
}

/// A victim at rank 0 and a peer at rank 1 that has joined but speaks for itself.
struct Scene {
    victim: Cohort,
    _peer: Cohort,
    exchanges: Vec<Exchange>,
    label: proto::Label,
}

async fn scene() -> Scene {
    let exchanges = cluster(2).await;
    let rosters = rosters(&exchanges, "job.1", 3, &[0..2, 2..4]);
    let label = proto::Label {
        lineage: "job.1".to_owned(),
        generation: 3,
        rank: 1,
        worker: "w1".to_owned(),
        roster: rosters[0].digest(Wire::F32).as_bytes().to_vec(),
    };
    let mut cohorts = join(&exchanges, "job.1", 3, &[0..2, 2..4], Wire::F32).into_iter();
    let (victim, peer) = (cohorts.next().unwrap(), cohorts.next().unwrap());
    Scene { victim, _peer: peer, exchanges, label }
}

/// What the peer would send if it kept to the rules, for the victim's own values.
fn honest(label: &proto::Label) -> (proto::ReduceOpen, Vec<Chunk>) {
    let open = proto::ReduceOpen { label: Some(label.clone()), step: 5, length: LENGTH as u64 };
    (open, vec![chunk(0, 0, &gradient(9, LENGTH))])
}

fn chunk(offset: u64, node: u32, values: &[f32]) -> Chunk {
    Chunk::new(offset, node, Bytes::copy_from_slice(bytemuck::cast_slice(values)))
}

fn parts(open: proto::ReduceOpen, chunks: Vec<Chunk>) -> Vec<Part> {
    let open = proto::ReduceRequest { open: Some(open), ..Default::default() };
    [Part::Frame(message(&open))].into_iter().chain(chunks.into_iter().map(Part::Chunk)).collect()
}

/// Lets the peer send and returns what the victim says and what the peer hears.
async fn attack(parts: impl FnOnce(&proto::Label) -> Vec<Part>) -> (ExchangeError, Option<Status>) {
    let scene = scene().await;
    let parts = parts(&scene.label);
    let victim = scene.victim.reduce(5, partials(scene.victim.roster(), LENGTH, Wire::F32));
    let peer = async {
        let mut reader = match call(scene.exchanges[0].address(), "Reduce", parts).await {
            Ok(reader) => reader,
            Err(status) => return Some(status),
        };
        loop {
            match reader.chunk().await {
                Ok(Some(_)) => {}
                Ok(None) => return None,
                Err(error) => return Some(error.into()),
            }
        }
    };
    let (outcome, heard) = futures::join!(victim, peer);
    (outcome.unwrap_err(), heard)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_with_partial_sums_is_named() {
    type Mutation = fn(&mut proto::ReduceOpen, &mut Vec<Chunk>);
    let cases: [(Mutation, &str); 12] = [
        (|open, _| open.length += 1, "1001 values where 1000 are due"),
        (|open, _| open.step = 4, "the sums of step 4 while the sums of step 5"),
        (|_, chunks| chunks[0] = chunk(0, 0, &gradient(9, LENGTH - 1)), "3996 bytes of a bucket where 4000"),
        (|_, chunks| chunks[0] = chunk(0, 0, &gradient(9, LENGTH + 1)), "4004 bytes of a bucket where 4000"),
        (|_, chunks| chunks.clear(), "0 values at the end where 1000"),
        (|_, chunks| chunks.push(chunks[0].clone()), "more partial sums than are due"),
        (|_, chunks| chunks[0].check ^= 1, "the checksum of values at 0 is wrong"),
        (|_, chunks| chunks[0].node = 1, "node 1 at 0 where node 0 at 0 is due"),
        (|_, chunks| chunks[0].offset = 8, "node 0 at 8 where node 0 at 0 is due"),
        (
            |_, chunks| chunks[0] = poisoned(f32::NAN),
            "w1 gives a value that is not finite at 77, from microbatches 2..4",
        ),
        (|_, chunks| chunks[0] = poisoned(f32::INFINITY), "w1 gives a value that is not finite at 77"),
        (|_, chunks| chunks[0] = poisoned(f32::NEG_INFINITY), "w1 gives a value that is not finite at 77"),
    ];
    for (mutate, says) in cases {
        let (error, heard) = attack(|label| {
            let (mut open, mut chunks) = honest(label);
            mutate(&mut open, &mut chunks);
            parts(open, chunks)
        })
        .await;
        assert!(error.to_string().contains(says), "{error}, not {says}");
        assert_eq!(error.peers()[0].as_str(), "w1", "{error}");
        let heard = heard.expect("the peer must not be told that all is well");
        assert!(heard.message().contains(says), "{heard:?}, not {says}");
    }
}

fn poisoned(value: f32) -> Chunk {
    let mut values = gradient(9, LENGTH);
    values[77] = value;
    chunk(0, 0, &values)
}

#[tokio::test(flavor = "multi_thread")]
async fn finite_partial_sums_may_overflow_together() {
    let scene = scene().await;
    let (open, _) = honest(&scene.label);
    let sent = parts(open, vec![chunk(0, 0, &[f32::MAX; LENGTH])]);
    let victim = scene.victim.reduce(5, vec![(0..2, vec![f32::MAX; LENGTH])]);
    let (outcome, _) = futures::join!(victim, call(scene.exchanges[0].address(), "Reduce", sent));
    let error = outcome.unwrap_err();
    assert!(error.to_string().contains("overflows at 0") && error.peers().is_empty(), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_that_are_no_messages_are_refused() {
    use http_body::Frame;
    let raw = |bytes: &[u8]| Part::Frame(Frame::data(Bytes::copy_from_slice(bytes)));
    let cases: [(Vec<u8>, &str); 6] = [
        (vec![1, 0, 0, 0, 1, 0], "must not be compressed"),
        (vec![0, 0xff, 0xff, 0xff, 0xff], "too long"),
        (vec![0, 0, 0, 0, 3, 0x2a, 0xff, 0xff], "exceed"),
        (vec![0, 0, 0, 0, 2, 0x77, 0], "unknown field"),
        (vec![0, 0, 0, 0, 9, 0x2a, 1, 7, 7], "last field"),
        (vec![0, 0, 0, 0, 9, 0x11, 1], "cut off"),
    ];
    for (bytes, says) in cases {
        let (error, _) = attack(|label| {
            let (open, _) = honest(label);
            let mut parts = parts(open, Vec::new());
            parts.push(raw(&bytes));
            parts
        })
        .await;
        assert!(error.to_string().contains(says), "{error}, not {says}");
        assert_eq!(error.peers()[0].as_str(), "w1");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn strangers_are_turned_away_and_the_cohort_goes_on() {
    let Scene { victim, _peer: peer, exchanges, label } = scene().await;
    type Mutation = fn(&mut proto::Label);
    let cases: [(Mutation, &str); 8] = [
        (|label| label.generation = 2, "generation 3 has been joined"),
        (|label| label.generation = 4, "generation 4 has not been joined yet"),
        (|label| label.lineage = "job.2".to_owned(), "has not been joined yet"),
        (|label| label.lineage = "x".repeat(1000), "too long"),
        (|label| label.worker = "w7".to_owned(), "not the member at rank 1"),
        (|label| label.rank = 9, "not the member at rank 9"),
        (|label| (label.rank, label.worker) = (0, "w0".to_owned()), "not the member at rank 0"),
        (|label| label.roster[0] ^= 1, "its roster, deal or wire format"),
    ];
    for (mutate, says) in cases {
        let mut label = label.clone();
        mutate(&mut label);
        let (open, chunks) = honest(&label);
        let status =
            call(exchanges[0].address(), "Reduce", parts(open, chunks)).await.map(|_| ()).unwrap_err();
        assert!(status.message().contains(says), "{status:?}, not {says}");
    }
    let unknown = call(exchanges[0].address(), "Steal", Vec::new()).await.map(|_| ()).unwrap_err();
    assert_eq!(unknown.code(), tonic::Code::Unimplemented);
    let empty = call(exchanges[0].address(), "Gather", Vec::new()).await.map(|_| ()).unwrap_err();
    assert!(empty.message().contains("no message"), "{empty:?}");
    let sums = futures::join!(
        victim.reduce(5, partials(victim.roster(), LENGTH, Wire::F32)),
        peer.reduce(5, partials(peer.roster(), LENGTH, Wire::F32))
    );
    assert_eq!(bits(&sums.0.unwrap()), bits(&sums.1.unwrap()));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_with_gathered_bytes_is_named() {
    type Mutation = fn(&mut proto::GatherOpen, &mut Vec<Chunk>);
    let bytes = Bytes::from(vec![3; 600_000]);
    let cases: [(Mutation, &str); 6] = [
        (|open, _| open.bytes = u64::MAX, "bytes at once where 1073741824 are due"),
        (|open, _| open.round = 2, "step 5, gather 2 while step 5, gather 1 is due"),
        (|open, _| open.bytes -= 1, "600000 bytes where 599999 are due"),
        (|_, chunks| drop(chunks.pop()), "524288 bytes where 600000 are due"),
        (|_, chunks| chunks.swap(0, 1), "bytes at 262144 where those at 0 are due"),
        (|_, chunks| chunks[1].check ^= 4, "the checksum of bytes at 262144 is wrong"),
    ];
    for (mutate, says) in cases {
        let scene = scene().await;
        let label = Some(scene.label.clone());
        let mut open = proto::GatherOpen { label, step: 5, round: 1, bytes: bytes.len() as u64 };
        let mut chunks: Vec<_> = gather::chunks(&bytes).collect();
        mutate(&mut open, &mut chunks);
        let open = proto::GatherRequest { open: Some(open), ..Default::default() };
        let parts = [Part::Frame(message(&open))].into_iter().chain(chunks.into_iter().map(Part::Chunk));
        let victim = scene.victim.all_gather((5, 1), Bytes::new());
        let (outcome, heard) =
            futures::join!(victim, call(scene.exchanges[0].address(), "Gather", parts.collect()));
        let error = outcome.unwrap_err();
        assert!(error.to_string().contains(says), "{error}, not {says}");
        assert_eq!(error.peers()[0].as_str(), "w1");
        assert!(heard.map(|_| ()).unwrap_err().message().contains(says));
    }
}
