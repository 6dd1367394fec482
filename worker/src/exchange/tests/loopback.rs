//! What members that keep to the rules get.

use super::certificates::Authority;
use super::*;
use bytes::Bytes;
use futures::future::join_all;
use plan::BUCKET_VALUES;
use std::time::Instant;

async fn reduce_all(cohorts: &[Cohort], step: u64, length: usize, wire: Wire) -> Vec<Vec<f32>> {
    let sums = cohorts.iter().map(|cohort| cohort.reduce(step, partials(cohort.roster(), length, wire)));
    join_all(sums).await.into_iter().map(Result::unwrap).collect()
}

async fn check_sums(exchanges: &[Exchange], lineage: &str, deals: &[Range<u32>], length: usize, wire: Wire) {
    let leaves = deals.last().unwrap().end;
    let cohorts = join(&exchanges[..deals.len()], lineage, 1, deals, wire);
    let (_, expected) = node_sum(0..leaves, leaves, length, wire);
    for step in 1..3 {
        for sum in reduce_all(&cohorts, step, length, wire).await {
            assert!(bits(&sum) == bits(&expected), "{deals:?}, {length} values, {wire:?}");
            cohorts[0].recycle(sum);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn sums_are_the_same_bits_whatever_the_deal() {
    let exchanges = cluster(4).await;
    let deals: [&[Range<u32>]; 6] = [
        &[0..7],
        &[0..4, 4..7],
        &[0..1, 1..7],
        &[0..3, 3..6, 6..7],
        &[0..2, 2..3, 3..5, 5..7],
        &[0..5, 5..6, 6..7],
    ];
    for (number, deals) in deals.into_iter().enumerate() {
        for length in [0, 1, 1000, BUCKET_VALUES, 3 * BUCKET_VALUES + 17] {
            let lineage = format!("f32-{number}-{length}");
            check_sums(&exchanges, &lineage, deals, length, Wire::F32).await;
        }
    }
    for deals in [&[0..7][..], &[0..4, 4..7], &[0..2, 2..4, 4..7], &[0..2, 2..4, 4..6, 6..7]] {
        let lineage = format!("bf16-{}", deals.len());
        check_sums(&exchanges, &lineage, deals, BUCKET_VALUES + 1001, Wire::Bf16 { level: 1 }).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn everyone_gets_everyones_bytes_in_rank_order() {
    let exchanges = cluster(3).await;
    let cohorts = join(&exchanges, "gather", 7, &[0..1, 1..2, 2..5], Wire::F32);
    let sizes = [[0usize, 5, 700_000], [1, 0, 0], [262_144, 262_145, 3]];
    for (round, sizes) in sizes.into_iter().enumerate() {
        let of = |rank: usize| Bytes::from(vec![rank as u8 + 1; sizes[rank]]);
        let gathers =
            cohorts.iter().enumerate().map(|(rank, cohort)| cohort.all_gather((1, round as u32), of(rank)));
        for gathered in join_all(gathers).await {
            assert_eq!(gathered.unwrap(), (0..3).map(of).collect::<Vec<_>>());
        }
    }
    // A step's exchanges follow each other without a pause, and members may be a phase ahead.
    let steps = cohorts.iter().map(|cohort| async move {
        for step in 2..6 {
            cohort.all_gather((step, 0), Bytes::from(vec![step as u8; 100])).await?;
            cohort.reduce(step, partials(cohort.roster(), 333, Wire::F32)).await?;
        }
        Ok::<_, ExchangeError>(())
    });
    join_all(steps).await.into_iter().for_each(|outcome| outcome.unwrap());
    let again = cohorts[0].all_gather((5, 0), Bytes::new()).await;
    assert!(matches!(again, Err(ExchangeError::Misuse(_))), "{again:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cohort_of_one_needs_no_peer() {
    let exchanges = cluster(1).await;
    let cohorts = join(&exchanges, "alone", 1, &[0..3], Wire::F32);
    assert_eq!(cohorts[0].all_gather((1, 0), Bytes::from("x")).await.unwrap(), ["x"]);
    let (node, mut sum) = node_sum(0..3, 3, 10, Wire::F32);
    assert_eq!(cohorts[0].reduce(1, vec![(node.clone(), sum.clone())]).await.unwrap(), sum);
    sum[4] = f32::NAN;
    let error = cohorts[0].reduce(2, vec![(node, sum)]).await.unwrap_err();
    assert!(error.to_string().contains("w0 gives a value that is not finite at 4"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_may_join_later_and_fetches_the_state() {
    let exchanges = cluster(2).await;
    let mut rosters = rosters(&exchanges, "late", 1, &[0..1, 1..2]).into_iter();
    let early = exchanges[0].join(rosters.next().unwrap(), Wire::F32).unwrap();
    let fetch = async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        let late = exchanges[1].join(rosters.next().unwrap(), Wire::F32).unwrap();
        let (state, gathered) =
            futures::join!(late.fetch_state(0, 2_000_000), late.all_gather((0, 0), Bytes::from("late")));
        assert_eq!(gathered.unwrap(), ["early", "late"]);
        let small = late.fetch_state(0, 1_999_999).await.unwrap_err();
        assert!(small.to_string().contains("2000000 bytes of state where 1999999"), "{small}");
        state.unwrap()
    };
    let serve = async {
        let gathered = early.all_gather((0, 0), Bytes::from("early")).await;
        early.publish_state(Bytes::from(vec![9; 2_000_000]));
        gathered
    };
    let (gathered, state) = futures::join!(serve, fetch);
    assert_eq!(gathered.unwrap(), ["early", "late"]);
    assert_eq!(state, vec![9; 2_000_000]);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_leaves_is_missed_at_once_and_a_new_generation_goes_on() {
    let exchanges = cluster(3).await;
    let mut old = join(&exchanges, "leave", 1, &[0..1, 1..2, 2..3], Wire::F32);
    drop(old.pop());
    let begun = Instant::now();
    let error = old[0].all_gather((1, 0), Bytes::new()).await.unwrap_err();
    assert!(error.is_aborted() && error.peers().is_empty(), "{error}");
    // The cause travels on.
    let error = old[1].all_gather((1, 0), Bytes::new()).await.unwrap_err();
    assert!(error.is_aborted() && error.to_string().contains("has left the generation"), "{error}");
    assert!(begun.elapsed() < Duration::from_millis(1400), "{:?}", begun.elapsed());
    // The old generation may still be held while the next one works.
    let new = join(&exchanges[..2], "leave", 2, &[0..2, 2..3], Wire::F32);
    let sums = reduce_all(&new, 1, 10, Wire::F32).await;
    assert_eq!(sums[0], sums[1]);
    let again = exchanges[0].join(new[0].roster().clone(), Wire::F32).map(|_| ()).unwrap_err();
    assert!(again.to_string().contains("generation 2 of leave is not newer than 2"), "{again}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_older_generation_is_refused_and_told_so() {
    let exchanges = cluster(2).await;
    let old = join(&exchanges, "old", 1, &[0..1, 1..2], Wire::F32);
    let roster = rosters(&exchanges, "old", 2, &[0..1, 1..2]).remove(1);
    let _new = exchanges[1].join(roster, Wire::F32).unwrap();
    let error = old[0].all_gather((1, 0), Bytes::new()).await.unwrap_err();
    assert!(error.is_stale() && error.to_string().contains("generation 2 has been joined"), "{error}");
    let error = old[1].all_gather((1, 0), Bytes::new()).await.unwrap_err();
    assert!(error.is_stale(), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn waits_are_bounded_and_name_the_peer() {
    let patient = |worker: &str| {
        let config = config(worker, net(None));
        ExchangeConfig { patience: Duration::from_millis(700), ..config }
    };
    let exchanges =
        [Exchange::listen(patient("w0")).await.unwrap(), Exchange::listen(patient("w1")).await.unwrap()];
    // It lives and gives nothing.
    let cohorts = join(&exchanges, "idle", 1, &[0..1, 1..2], Wire::F32);
    let error = cohorts[0].all_gather((1, 0), Bytes::new()).await.unwrap_err();
    assert!(matches!(error, ExchangeError::TimedOut { .. }) && error.peers()[0].as_str() == "w1", "{error}");
    // It lives and never joins.
    let roster = rosters(&exchanges, "absent", 1, &[0..1, 1..2]).remove(0);
    let cohort = exchanges[0].join(roster, Wire::F32).unwrap();
    let error = cohort.reduce(1, partials(cohort.roster(), 10, Wire::F32)).await.unwrap_err();
    assert!(error.peers()[0].as_str() == "w1", "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_and_a_dead_peer_are_noticed_in_time() {
    let exchanges = cluster(1).await;
    // It accepts connections and says nothing, as a stopped process does.
    let frozen = net::bind("127.0.0.1:0").await.unwrap();
    let free = net::bind("127.0.0.1:0").await.unwrap();
    let dead = free.address().to_string();
    drop(free);
    for (generation, address) in [(1, frozen.address().to_string()), (2, dead)] {
        let own = exchanges[0].address().to_owned();
        let member = |worker: &str, address: String, microbatches| Member {
            worker: worker.parse().unwrap(),
            address,
            microbatches,
        };
        let members = vec![member("w0", own, 0..1), member("w1", address, 1..2)];
        let roster = Roster { lineage: "frozen".to_owned(), generation, members, rank: 0 };
        let cohort = exchanges[0].join(roster, Wire::F32).unwrap();
        let begun = Instant::now();
        let error = cohort.all_gather((1, 0), Bytes::new()).await.unwrap_err();
        assert!(matches!(error, ExchangeError::Unreachable { .. }), "{error}");
        assert_eq!(error.peers()[0].as_str(), "w1");
        assert!(begun.elapsed() < Duration::from_millis(3000), "{:?}", begun.elapsed());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_holds_in_both_directions() {
    let folder = tempfile::tempdir().unwrap();
    let (site, other) = (Authority::new(folder.path(), "site"), Authority::new(folder.path(), "other"));
    let files = |authority: &Authority, name: &str| {
        let [cert, key, ca] = authority.issue(name, &["127.0.0.1"]);
        TlsFiles { cert, key, ca }
    };
    let mut exchanges = Vec::new();
    for worker in ["w0", "w1", "w2"] {
        let config = config(worker, net(Some(files(&site, worker))));
        exchanges.push(Exchange::listen(config).await.unwrap());
    }
    check_sums(&exchanges, "tls", &[0..3, 3..4, 4..5], BUCKET_VALUES * 4 + 3, Wire::F32).await;
    // It trusts the site, but the site does not trust it.
    let intruder = TlsFiles { ca: files(&site, "x").ca, ..files(&other, "intruder") };
    exchanges[1] = Exchange::listen(config("w1", net(Some(intruder)))).await.unwrap();
    let cohorts = join(&exchanges[..2], "intruder", 1, &[0..1, 1..2], Wire::F32);
    let error = cohorts[1].all_gather((1, 0), Bytes::new()).await.unwrap_err();
    assert!(error.to_string().contains("refuses this side's certificate"), "{error}");
    let error = cohorts[0].all_gather((1, 0), Bytes::new()).await.unwrap_err();
    assert!(error.to_string().contains("does not come from the given ca"), "{error}");
}
