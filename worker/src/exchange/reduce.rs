//! Reduction: partial sums to the owners, finished sums back.

use super::cohort::Shared;
use super::error::ExchangeError;
use super::fold::Fold;
use super::frame::{self, Chunk, Part};
use super::link::Link;
use super::plan::{BUCKET_VALUES, Plan};
use super::registry::ReduceIn;
use super::wire::{self, Operand, all_finite};
use crate::training::tree::Wire;
use bytes::Bytes;
use futures::future::{try_join, try_join_all};
use futures::stream;
use retort_common::proto;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use tonic::Status;

/// One reduction.
pub async fn run(
    shared: &Shared,
    step: u64,
    partials: Vec<(Range<u32>, Vec<f32>)>,
) -> Result<Vec<f32>, ExchangeError> {
    let begun = Instant::now();
    let mut turn = shared.reduces.lock().await;
    turn.begin(step)?;
    let roster = &shared.hub.roster;
    let deals: Vec<_> = roster.members.iter().map(|member| member.microbatches.clone()).collect();
    let length = partials.first().map_or(0, |(_, values)| values.len());
    let plan = Arc::new(Plan::new(&deals, length, shared.wire, BUCKET_VALUES));
    let mine = own_partials(shared, &plan, partials)?;
    if plan.members() == 1 {
        return alone(shared, mine);
    }
    let mut out = shared.buffer(length);
    let mut rest = out.as_mut_slice();
    let mut gets = Vec::new();
    let mut own = None;
    for (rank, link) in shared.links.iter().enumerate() {
        let (part, after) = rest.split_at_mut(plan.owned(rank).len());
        rest = after;
        match link {
            Some(link) => gets.push(fetch(link, &plan, step, rank, &mine, part)),
            None => own = Some(part),
        }
    }
    let own = own.expect("the own rank has no link");
    let owner = Owner { shared, plan: &plan, mine: &mine };
    let (_, (came, summing)) =
        try_join(try_join_all(gets), owner.serve(step, &mut turn.inboxes, own)).await?;
    shared.note(begun, came.saturating_duration_since(begun), summing);
    // Nobody refers to them any more: every sum has come, so every partial sum has gone.
    mine.into_iter().filter_map(wire::Shared::into_inner).for_each(|buffer| shared.recycle(buffer));
    Ok(out)
}

/// The own partial sums, checked and rounded as the wire demands.
fn own_partials(
    shared: &Shared,
    plan: &Plan,
    partials: Vec<(Range<u32>, Vec<f32>)>,
) -> Result<Vec<wire::Shared>, ExchangeError> {
    let roster = &shared.hub.roster;
    let given: Vec<_> = partials.iter().map(|(node, _)| node.clone()).collect();
    let due = plan.nodes(roster.rank);
    if given != due {
        let text = format!("partial sums of {given:?} are given where those of {due:?} are due");
        return Err(ExchangeError::Misuse(text));
    }
    let length = partials.first().map_or(0, |(_, values)| values.len());
    if partials.iter().any(|(_, values)| values.len() != length) {
        return Err(ExchangeError::Misuse("partial sums differ in length".to_owned()));
    }
    let leaves = roster.leaves();
    let round = |(node, mut values): (Range<u32>, Vec<f32>)| {
        shared.wire.round(&node, leaves, &mut values);
        wire::Shared::new(values)
    };
    Ok(partials.into_iter().map(round).collect())
}

/// A cohort of one has the root already.
fn alone(shared: &Shared, mine: Vec<wire::Shared>) -> Result<Vec<f32>, ExchangeError> {
    let sum = mine.into_iter().next().and_then(wire::Shared::into_inner).unwrap_or_default();
    if let Some(at) = (!all_finite(&sum)).then(|| Operand::Values(&sum).first_not_finite()).flatten() {
        let roster = &shared.hub.roster;
        return Err(ExchangeError::NonFinite {
            worker: roster.members[roster.rank].worker.clone(),
            microbatches: 0..roster.leaves(),
            offset: at as u64,
        });
    }
    Ok(sum)
}

/// Sends the own partial sums of a peer's buckets and takes their finished sums.
async fn fetch(
    link: &Link,
    plan: &Arc<Plan>,
    step: u64,
    rank: usize,
    mine: &[wire::Shared],
    out: &mut [f32],
) -> Result<(), ExchangeError> {
    if out.is_empty() {
        return Ok(());
    }
    let length = mine.first().map_or(0, |values| values.values().len());
    let open = proto::ReduceOpen { label: link.label(), step, length: length as u64 };
    let open = proto::ReduceRequest { open: Some(open), ..Default::default() };
    let parts = [Part::Frame(frame::message(&open))].into_iter().chain(outgoing(plan, rank, mine));
    let mut reader = link.call("Reduce", stream::iter(parts)).await?;
    let start = plan.owned(rank).start;
    for bucket in plan.buckets(rank) {
        let chunk = match link.within("sums", reader.chunk()).await? {
            Ok(Some(chunk)) => chunk,
            Ok(None) => return Err(missing(link, &bucket)),
            Err(error) => return Err(link.blame(error).await),
        };
        check(link, plan.wire(), &chunk, &bucket, 0)?;
        let values = Operand::of(plan.wire(), &chunk.data);
        if !values.copy_finite(&mut out[bucket.start - start..bucket.end - start]) {
            let worker = link.peer.clone();
            return Err(ExchangeError::NonFinite { worker, microbatches: plan.root(), offset: chunk.offset });
        }
    }
    // The trailers say that the owner, too, takes the sums for good.
    match link.within("end", reader.chunk()).await? {
        Ok(None) => Ok(()),
        Ok(Some(_)) => Err(ExchangeError::Malformed {
            peer: link.peer.clone(),
            what: "more sums than it owns".to_owned(),
        }),
        Err(error) => Err(link.blame(error).await),
    }
}

/// The own partial sums of a peer's buckets, bucket by bucket, node by node. Nothing is copied for f32.
fn outgoing(
    plan: &Arc<Plan>,
    rank: usize,
    mine: &[wire::Shared],
) -> impl Iterator<Item = Part> + Send + use<> {
    let sources: Vec<(wire::Shared, Bytes)> =
        mine.iter().map(|values| (values.clone(), values.bytes())).collect();
    let (wire, nodes) = (plan.wire(), mine.len());
    let pairs = plan.buckets(rank).flat_map(move |bucket| (0..nodes).map(move |node| (bucket.clone(), node)));
    pairs.map(move |(bucket, node)| {
        let (values, bytes) = &sources[node];
        let data = match wire {
            Wire::F32 => bytes.slice(bucket.start * 4..bucket.end * 4),
            Wire::Bf16 { .. } => wire::encode_bf16(&values.values()[bucket.clone()]),
        };
        Part::Chunk(Chunk::new(bucket.start as u64, node as u32, data))
    })
}

fn missing(link: &Link, bucket: &Range<usize>) -> ExchangeError {
    let (expected, peer) = (bucket.len() as u64, link.peer.clone());
    ExchangeError::Length { peer, what: "values at the end", expected, found: 0 }
}

/// Whether a chunk is the one that is due.
fn check(
    link: &Link,
    wire: Wire,
    chunk: &Chunk,
    bucket: &Range<usize>,
    node: u32,
) -> Result<(), ExchangeError> {
    let peer = || link.peer.clone();
    let offset = chunk.offset;
    if (offset, chunk.node) != (bucket.start as u64, node) {
        let found = format!("node {} at {offset}", chunk.node);
        let what = format!("{found} where node {node} at {} is due", bucket.start);
        return Err(ExchangeError::Malformed { peer: peer(), what });
    }
    let (expected, found) = ((bucket.len() * wire.value_bytes()) as u64, chunk.data.len() as u64);
    if expected != found {
        return Err(ExchangeError::Length { peer: peer(), what: "bytes of a bucket", expected, found });
    }
    if !chunk.is_intact() {
        return Err(ExchangeError::Checksum { peer: peer(), what: "values", offset });
    }
    Ok(())
}

/// Finishes the sums of the own buckets.
struct Owner<'a> {
    shared: &'a Shared,
    plan: &'a Plan,
    mine: &'a [wire::Shared],
}

/// A peer's stream of partial sums.
struct Incoming<'a> {
    link: &'a Link,
    stream: ReduceIn,
}

impl Owner<'_> {
    async fn serve(
        &self,
        step: u64,
        inboxes: &mut [Option<mpsc::Receiver<ReduceIn>>],
        out: &mut [f32],
    ) -> Result<(Instant, Duration), ExchangeError> {
        if out.is_empty() {
            return Ok((Instant::now(), Duration::ZERO));
        }
        let mut peers = self.open(step, inboxes).await?;
        let came = Instant::now();
        let outcome = self.sum(&mut peers, out).await;
        if let Err(error) = &outcome {
            // The peers that the error names hear it; the others learn that the generation is over.
            let named = error.peers();
            for peer in peers.iter().flatten().filter(|peer| named.contains(&peer.link.peer)) {
                let status = Status::invalid_argument(error.to_string());
                let _ = peer.stream.reply.try_send(Part::Frame(frame::status_frame(status)));
            }
        }
        outcome.map(|summing| (came, summing))
    }

    /// Waits for every peer's stream; by rank, nothing at the own one.
    async fn open(
        &self,
        step: u64,
        inboxes: &mut [Option<mpsc::Receiver<ReduceIn>>],
    ) -> Result<Vec<Option<Incoming<'_>>>, ExchangeError> {
        let opens = inboxes.iter_mut().zip(&self.shared.links).map(|(inbox, link)| async move {
            let (Some(inbox), Some(link)) = (inbox, link.as_deref()) else { return Ok(None) };
            let stream = self.shared.next(link, inbox, "partial sums").await?;
            let (peer, found) = (link.peer.clone(), stream.open.step);
            let outcome = if found != step {
                let name = |step: u64| format!("the sums of step {step}");
                Err(ExchangeError::OutOfStep { peer, expected: name(step), found: name(found) })
            } else if stream.open.length != self.plan.length() as u64 {
                let (expected, found) = (self.plan.length() as u64, stream.open.length);
                Err(ExchangeError::Length { peer, what: "values", expected, found })
            } else {
                return Ok(Some(Incoming { link, stream }));
            };
            if let Err(error) = &outcome {
                let status = Status::invalid_argument(error.to_string());
                let _ = stream.reply.try_send(Part::Frame(frame::status_frame(status)));
            }
            outcome
        });
        try_join_all(opens).await
    }

    async fn sum(
        &self,
        peers: &mut [Option<Incoming<'_>>],
        out: &mut [f32],
    ) -> Result<Duration, ExchangeError> {
        let rank = self.shared.hub.roster.rank;
        let start = self.plan.owned(rank).start;
        let (sources, fold) = (self.plan.sources(), self.plan.fold());
        let mut summing = Duration::ZERO;
        let mut chunks: Vec<Bytes> = Vec::with_capacity(sources.len());
        for bucket in self.plan.buckets(rank) {
            chunks.clear();
            for peer in peers.iter_mut().flatten() {
                let nodes = self.plan.nodes(peer.rank()).len();
                for node in 0..nodes as u32 {
                    chunks.push(peer.next(self.plan.wire(), &bucket, node).await?);
                }
            }
            let begun = Instant::now();
            let place = bucket.start - start..bucket.end - start;
            let sum = self.fold(&fold, &sources, &chunks, &bucket, &mut out[place])?;
            let data = self.shared.pool.encode(self.plan.wire(), sum);
            let chunk = Chunk::new(bucket.start as u64, 0, data);
            summing += begun.elapsed();
            for peer in peers.iter_mut().flatten() {
                peer.reply(Part::Chunk(chunk.clone())).await?;
            }
        }
        for peer in peers.iter_mut().flatten() {
            peer.end().await?;
        }
        for peer in peers.iter_mut().flatten() {
            peer.reply(Part::Frame(frame::all_well())).await?;
        }
        Ok(summing)
    }

    /// One bucket's sum in tree order, which must be finite; `out` gets it, too.
    fn fold(
        &self,
        fold: &Fold,
        sources: &[(usize, Range<u32>)],
        chunks: &[Bytes],
        bucket: &Range<usize>,
        out: &mut [f32],
    ) -> Result<Vec<f32>, ExchangeError> {
        let rank = self.shared.hub.roster.rank;
        let (mut own, mut others) = (self.mine.iter(), chunks.iter());
        let operand = |(from, _): &(usize, Range<u32>)| {
            if *from == rank {
                own.next().map(|values| Operand::Values(&values.values()[bucket.clone()]))
            } else {
                others.next().map(|bytes| Operand::of(self.plan.wire(), bytes))
            }
        };
        let operands: Vec<Operand<'_>> = sources.iter().filter_map(operand).collect();
        let sum = fold.run(&operands, &self.shared.pool);
        if Operand::Values(&sum).copy_finite(out) {
            return Ok(sum);
        }
        let place = |at: usize| (bucket.start + at) as u64;
        for ((from, node), operand) in sources.iter().zip(&operands) {
            if let Some(at) = operand.first_not_finite() {
                let worker = self.shared.hub.roster.members[*from].worker.clone();
                return Err(ExchangeError::NonFinite {
                    worker,
                    microbatches: node.clone(),
                    offset: place(at),
                });
            }
        }
        let at = Operand::Values(&sum).first_not_finite().unwrap_or(0);
        Err(ExchangeError::Overflow { offset: place(at) })
    }
}

impl Incoming<'_> {
    fn rank(&self) -> usize {
        self.stream.rank
    }

    async fn next(&mut self, wire: Wire, bucket: &Range<usize>, node: u32) -> Result<Bytes, ExchangeError> {
        let link = self.link;
        match link.within("partial sums", self.stream.reader.chunk()).await? {
            Ok(Some(chunk)) => check(link, wire, &chunk, bucket, node).map(|()| chunk.data),
            Ok(None) => Err(missing(link, bucket)),
            Err(error) => Err(link.blame(error).await),
        }
    }

    async fn end(&mut self) -> Result<(), ExchangeError> {
        let link = self.link;
        match link.within("end", self.stream.reader.chunk()).await? {
            Ok(None) => Ok(()),
            Ok(Some(_)) => {
                let what = "more partial sums than are due".to_owned();
                Err(ExchangeError::Malformed { peer: link.peer.clone(), what })
            }
            Err(error) => Err(link.blame(error).await),
        }
    }

    async fn reply(&mut self, part: Part) -> Result<(), ExchangeError> {
        let link = self.link;
        match link.within("room for sums", self.stream.reply.send(part)).await? {
            Ok(()) => Ok(()),
            Err(_) => {
                let status = Status::from_error("it takes no more sums".into());
                Err(link.blame(frame::ReadError::Status(status)).await)
            }
        }
    }
}
