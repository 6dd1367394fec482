//! Several exchanges in one process over real TCP.

#[path = "../../../../common/src/net/certificates.rs"]
mod certificates;
mod hostile;
mod loopback;

use super::*;
use crate::training::tree::{TreeSum, subtrees};
use retort_common::net::TlsFiles;
use std::ops::Range;

/// Short time-outs for tests that wait for them; the machine may be busy.
fn net(tls: Option<TlsFiles>) -> NetOptions {
    NetOptions { tls, failure_detection: Duration::from_millis(1500) }
}

fn config(worker: &str, net: NetOptions) -> ExchangeConfig {
    ExchangeConfig {
        worker: worker.parse().unwrap(),
        listen: "127.0.0.1:0".to_owned(),
        advertise: None,
        net,
        patience: Duration::from_secs(20),
    }
}

async fn cluster(members: usize) -> Vec<Exchange> {
    let mut exchanges = Vec::new();
    for rank in 0..members {
        exchanges.push(Exchange::listen(config(&format!("w{rank}"), net(None))).await.unwrap());
    }
    exchanges
}

/// The rosters of a generation, one for each member.
fn rosters(exchanges: &[Exchange], lineage: &str, generation: u64, deals: &[Range<u32>]) -> Vec<Roster> {
    let member = |(exchange, deal): (&Exchange, &Range<u32>)| Member {
        worker: exchange.inner.config.worker.clone(),
        address: exchange.address().to_owned(),
        microbatches: deal.clone(),
    };
    let members: Vec<Member> = exchanges.iter().zip(deals).map(member).collect();
    let roster = |rank| Roster { lineage: lineage.to_owned(), generation, members: members.clone(), rank };
    (0..members.len()).map(roster).collect()
}

fn join(
    exchanges: &[Exchange],
    lineage: &str,
    generation: u64,
    deals: &[Range<u32>],
    wire: Wire,
) -> Vec<Cohort> {
    let rosters = rosters(exchanges, lineage, generation, deals);
    exchanges.iter().zip(rosters).map(|(exchange, roster)| exchange.join(roster, wire).unwrap()).collect()
}

/// The gradient of a microbatch: numbers of many magnitudes, so that another order of additions shows.
fn gradient(microbatch: u32, length: usize) -> Vec<f32> {
    let mut state = u64::from(microbatch).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x1234_5678;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        let mantissa = (state >> 40) as f32 / (1 << 24) as f32 - 0.5;
        mantissa * 2f32.powi((state % 13) as i32 - 6)
    };
    (0..length).map(|_| next()).collect()
}

fn node_sum(node: Range<u32>, leaves: u32, length: usize, wire: Wire) -> (Range<u32>, Vec<f32>) {
    let mut sum = TreeSum::of(&node, leaves, wire);
    node.clone().for_each(|microbatch| sum.push(gradient(microbatch, length)));
    (node, sum.finish().unwrap())
}

/// What a member sums alone.
fn partials(roster: &Roster, length: usize, wire: Wire) -> Vec<(Range<u32>, Vec<f32>)> {
    let deal = roster.members[roster.rank].microbatches.clone();
    let nodes = subtrees(deal, roster.leaves());
    nodes.into_iter().map(|node| node_sum(node, roster.leaves(), length, wire)).collect()
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}
