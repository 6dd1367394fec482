//! From generation to generation: agreeing on a state, steps until the generation ends, checkpoints.
//!
//! The state outlives generations in each member's memory. A generation begins with the most advanced state that its
//! members have; who has another fetches it from a peer. Where nobody has taken a step, the first member looks for a
//! checkpoint in the store.

use super::super::bench::{TaskError, Workbench};
use super::super::order::OrderReader;
use super::cohort::{Broken, Membership, Standing, next_generation};
use super::doubt::{Check, Doubt, check};
use super::telling::Telling;
use super::trainer::{Trainer, wire};
use crate::report::StepPoint;
use crate::session::Stop;
use crate::training::checkpoint::{Checkpoint, Checkpoints, InFlight, Offered};
use bytes::Bytes;
use retort_common::ids::AttemptNumber;
use retort_common::metrics::StepTiming;
use std::time::{Duration, Instant};

/// Rounds of exchange in which a generation agrees on its state.
const STATE_ROUND: u32 = 0;
/// The round in which members wait for each other before they leave together.
const LEAVE_ROUND: u32 = 4;
/// Most bytes of a loss curve that a state may carry.
const MAX_CURVE_BYTES: usize = 256 << 20;
/// How often a member that waits for its coordinator looks again.
const ORPHAN_PAUSE: Duration = Duration::from_millis(100);

/// A phase on its way through generations.
pub(super) struct Course<'a> {
    pub(super) bench: &'a Workbench<'a>,
    pub(super) trainer: Trainer<'a>,
    pub(super) reader: OrderReader<'a>,
    pub(super) checkpoints: Checkpoints,
    pub(super) in_flight: InFlight,
    /// The state before the first step.
    pub(super) initial: &'a dyn Fn() -> Result<Checkpoint, TaskError>,
    /// The step that this part of the phase begins with; the order holds rows from there on.
    pub(super) first: u64,
    /// The step after its last.
    pub(super) end: u64,
    /// Steps of the whole phase.
    pub(super) total: u64,
    /// Steps taken, counted over the whole phase.
    pub(super) step: u64,
    pub(super) standing: Standing,
    pub(super) telling: Telling,
    /// A value that was not finite, for the next generation to look at.
    pub(super) doubt: Option<Doubt>,
    /// Whether this worker writes checkpoints and the artifact.
    pub(super) leads: bool,
}

/// How a generation ended well.
enum End {
    /// Every step is done, and this worker is to write the artifact.
    Done,
    /// Its members left it together.
    Left,
}

impl Course<'_> {
    /// Takes every step; returns on the member that is to write the artifact.
    pub(super) fn run(&mut self) -> Result<(), TaskError> {
        let outcome = match &self.bench.seat {
            Some(seat) if seat.is_in_cohort() => self.run_in_cohort(),
            _ => self.run_alone(),
        };
        if matches!(outcome, Err(TaskError::Stopped)) {
            self.save_at_stop()?;
        }
        outcome
    }

    fn run_alone(&mut self) -> Result<(), TaskError> {
        let microbatches = self.trainer.phase.microbatches;
        let membership = Membership::alone(self.bench.runtime.clone(), microbatches);
        match self.generation(&membership) {
            Ok(_) => Ok(()),
            Err(Broken::Task(error)) => Err(error),
            Err(Broken::Superseded | Broken::Trouble { .. } | Broken::Doubt(_)) => Err(TaskError::Stopped),
        }
    }

    fn run_in_cohort(&mut self) -> Result<(), TaskError> {
        let seat = self.bench.seat.as_ref().expect("a cohort has seats");
        let runtime = &self.bench.runtime;
        if seat.stands_by() {
            seat.context.ready();
        }
        let (mut after, mut trouble): (Option<AttemptNumber>, Option<Broken>) = (None, None);
        loop {
            let generation = next_generation(seat, runtime, after, trouble.as_ref())?;
            let lineage = self.checkpoints.lineage().to_owned();
            let wire = wire(self.trainer.phase);
            let membership = Membership::join(seat, runtime.clone(), &lineage, wire, &generation)?;
            (after, self.leads) = (Some(membership.number()), membership.is_lead());
            let end = self.generation(&membership);
            self.say_end(&membership, &end);
            trouble = match end {
                Ok(End::Done) => return Ok(()),
                Ok(End::Left) | Err(Broken::Superseded) => None,
                Err(Broken::Task(error)) => return Err(error),
                Err(Broken::Doubt(doubt)) => Some(self.tell_doubt(doubt)),
                Err(broken) => Some(broken),
            };
        }
    }

    fn generation(&mut self, membership: &Membership<'_>) -> Result<End, Broken> {
        let check = self.agree(membership)?;
        self.telling.rewind(self.step);
        if let Some(check) = check {
            let rows = self.reader.step(self.step - self.first)?;
            return Err(self.trainer.settle(membership, &check, &rows, &self.standing)?);
        }
        membership.take_spent();
        while self.step < self.end {
            self.check_line()?;
            let begun = Instant::now();
            let rows = self.reader.step(self.step - self.first)?;
            let leave = self.trainer.step(membership, self.step, &rows, &mut self.standing)?;
            self.step += 1;
            self.note(membership, begun.elapsed());
            self.say();
            self.offer_checkpoint(membership)?;
            if leave && self.step < self.end {
                membership.all_gather((self.step - 1, LEAVE_ROUND), Vec::new(), &self.standing)?;
                return Ok(End::Left);
            }
        }
        if membership.is_lead() {
            if let Err(error) = self.in_flight.settle() {
                self.bench.progress.log(&format!("a checkpoint could not be written: {error}"));
            }
            return Ok(End::Done);
        }
        // The first member writes the artifact. Should it fail, the coordinator names another first member.
        let seat = self.bench.seat.as_ref().expect("a member has a seat");
        self.standing.say(seat, true);
        next_generation(seat, &self.bench.runtime, Some(membership.number()), None)?;
        Ok(End::Left)
    }

    /// Whether to go on: not after a stop, and without the coordinator only for a while.
    fn check_line(&self) -> Result<(), TaskError> {
        self.bench.go_on()?;
        let Some(seat) = &self.bench.seat else { return Ok(()) };
        let is_orphan = || {
            let orphaned = seat.context.control().borrow().orphaned;
            orphaned.is_some_and(|since| since.elapsed() > seat.orphan_limit)
        };
        if is_orphan() {
            tracing::warn!("no coordinator for {:?}: the training waits for one", seat.orphan_limit);
        }
        while is_orphan() {
            self.bench.go_on()?;
            std::thread::sleep(ORPHAN_PAUSE);
        }
        Ok(())
    }

    /// Keeps a doubt for the next generation, which has the same members if they are all there.
    fn tell_doubt(&mut self, doubt: Doubt) -> Broken {
        let message = doubt.says();
        self.doubt = Some(doubt);
        Broken::Trouble { peers: Vec::new(), suspect: false, message }
    }

    /// Notes where the time of a step went.
    fn note(&mut self, membership: &Membership<'_>, elapsed: Duration) {
        let spent = membership.take_spent();
        let us = |time: Duration| time.as_micros() as u64;
        let timing = StepTiming {
            microbatches: membership.deal().len() as u32,
            step_us: us(elapsed),
            waiting_us: us(spent.waiting),
            exchange_us: us(spent.exchanging),
        };
        self.telling.note(self.step, timing);
    }

    /// Says in the job's log where a generation ended that did not come to its end.
    fn say_end(&self, membership: &Membership<'_>, end: &Result<End, Broken>) {
        let why = match end {
            Ok(_) | Err(Broken::Task(_)) => return,
            Err(Broken::Superseded) => "another was named",
            Err(Broken::Doubt(doubt)) => &doubt.says(),
            Err(Broken::Trouble { message, .. }) => message.as_str(),
        };
        let (number, step, doing) = (membership.number().0, self.step + 1, membership.doing());
        self.bench.progress.log(&format!("generation {number} ended in step {step} while {doing}: {why}"));
    }

    fn say(&mut self) {
        let (step, steps) = (self.step, self.total);
        let loss = self.trainer.curve.last().map_or(f64::NAN, |point| point.loss);
        self.standing.done = step;
        self.standing.detail = format!("step {step}/{steps}, loss {loss:.4}");
        match &self.bench.seat {
            Some(seat) if seat.is_in_cohort() => self.standing.say(seat, false),
            _ => self.bench.progress.progress(step, self.end, &self.standing.detail),
        }
        self.tell(step == self.end);
    }

    fn tell(&mut self, at_once: bool) {
        let Some(seat) = &self.bench.seat else { return };
        let (lineage, curve) = (self.checkpoints.lineage(), &self.trainer.curve);
        self.telling.tell(seat, lineage, curve, (self.first, self.leads), at_once);
    }

    fn offer_checkpoint(&mut self, membership: &Membership<'_>) -> Result<(), TaskError> {
        let every = u64::from(self.trainer.phase.checkpoint_every);
        if !membership.is_lead() || !self.step.is_multiple_of(every) || self.step == self.end {
            return Ok(());
        }
        let (trainer, step) = (&self.trainer, self.step);
        let fill = |into: &mut Checkpoint| trainer.copy_state(step, into);
        match self.checkpoints.offer(&mut self.in_flight, fill) {
            Ok(Offered::Taken) => {}
            Ok(Offered::LeftOut) => {
                let text = format!("no checkpoint of step {step}: the one before is still being written");
                self.bench.progress.log(&text);
            }
            // It is there for recovery alone: the training can do without, and says so.
            Err(error) => self.bench.progress.log(&format!("a checkpoint could not be written: {error}")),
        }
        Ok(())
    }

    /// A training that is told to stop, and not at once, leaves a checkpoint behind.
    fn save_at_stop(&mut self) -> Result<(), TaskError> {
        let stop = self.bench.seat.as_ref().and_then(|seat| seat.context.cancelled());
        let settled = self.in_flight.settle();
        if self.step == self.first || !self.leads || stop == Some(Stop { force: true }) {
            return Ok(());
        }
        if let Err(error) = settled {
            self.bench.progress.log(&format!("a checkpoint could not be written: {error}"));
        }
        let mut checkpoint = Checkpoint::default();
        self.trainer.copy_state(self.step, &mut checkpoint);
        self.checkpoints.save(&checkpoint)?;
        self.bench.progress.log(&format!("stopped at step {} with a checkpoint", self.step));
        Ok(())
    }

    /// Agrees with the other members on the state to go on from, and on what is to be computed once more first.
    fn agree(&mut self, membership: &Membership<'_>) -> Result<Option<Check>, Broken> {
        self.standing.total = self.end;
        if membership.is_lead() && self.step == self.first {
            self.resume()?;
        }
        if membership.deals().len() == 1 {
            self.doubt = None;
            return Ok(None);
        }
        let mine = Stand { step: self.step, digest: self.trainer.state_digest() };
        let message = [mine.encode(), Doubt::encode(self.doubt.as_ref())].concat();
        let all = membership.all_gather((0, STATE_ROUND), message, &self.standing)?;
        let microbatches = self.trainer.phase.microbatches;
        let told: Vec<_> = all.iter().map(|message| Stand::decode(message, microbatches)).collect();
        for (rank, told) in told.iter().enumerate() {
            if told.as_ref().is_none_or(|(stand, _)| stand.step > self.end) {
                let message = "no state as it must be at the beginning of a generation".to_owned();
                return Err(Broken::Trouble { peers: vec![membership.worker(rank)], suspect: true, message });
            }
        }
        let (stands, doubts): (Vec<Stand>, Vec<Option<Doubt>>) = told.into_iter().flatten().unzip();
        let best = match choose(&stands) {
            Choice::Agreed(best) => best,
            Choice::Disputed { step, minority } => return Err(self.dispute(membership, step, &minority)),
        };
        let source = stands.iter().position(|stand| *stand == best).expect("the best is one of them");
        let behind = stands.iter().any(|stand| *stand != best);
        if behind && membership.rank() == source {
            let state = self.encode_state();
            membership.publish_state(state);
        } else if mine != best {
            self.fetch(membership, source, best)?;
        }
        self.doubt = None;
        Ok(check(&doubts, best.step, membership.workers()))
    }

    /// Members have different bits after the same steps. Most of them are right; without a majority nobody's memory
    /// counts, and the next generation begins with what the store has.
    fn dispute(&mut self, membership: &Membership<'_>, step: u64, minority: &[usize]) -> Broken {
        let peers: Vec<_> = minority
            .iter()
            .filter(|rank| **rank != membership.rank())
            .map(|rank| membership.worker(*rank))
            .collect();
        if 2 * minority.len() >= membership.deals().len()
            && let Err(error) = self.reset()
        {
            return Broken::Task(error);
        }
        let message = format!("members have different states after step {step}");
        Broken::Trouble { peers, suspect: true, message }
    }

    /// Forgets what is in memory.
    fn reset(&mut self) -> Result<(), TaskError> {
        self.step = self.first;
        self.trainer.restore((self.initial)()?)
    }

    fn fetch(&mut self, membership: &Membership<'_>, source: usize, best: Stand) -> Result<(), Broken> {
        let limit = STATE_HEADER_BYTES + 12 * self.trainer.params.len() + MAX_CURVE_BYTES;
        let bytes = membership.fetch_state(source, limit, &self.standing)?;
        let wrong = |what: &str| Broken::Trouble {
            peers: vec![membership.worker(source)],
            suspect: true,
            message: format!("the state of step {} from {}: {what}", best.step, membership.worker(source)),
        };
        let state =
            decode_state(&bytes, self.trainer.params.len()).ok_or_else(|| wrong("not as it must be"))?;
        let step = state.step;
        self.trainer.restore(state)?;
        self.step = step;
        if (Stand { step, digest: self.trainer.state_digest() }) != best {
            // What is in memory now is nobody's state.
            self.reset()?;
            return Err(wrong("another digest than was told"));
        }
        let text = format!("took over step {step} from worker {}", membership.worker(source));
        self.bench.progress.log(&text);
        Ok(())
    }

    /// Takes up the newest complete checkpoint, or begins anew.
    fn resume(&mut self) -> Result<(), TaskError> {
        let log = |text: &str| self.bench.progress.log(text);
        let found = self.checkpoints.latest(self.trainer.params.len(), None, &log)?;
        let Some(state) = found else { return Ok(()) };
        self.step = state.step;
        self.trainer.restore(state)?;
        self.bench.progress.log(&format!("resumed from the checkpoint of step {}", self.step));
        Ok(())
    }

    fn encode_state(&self) -> Vec<u8> {
        let mut state = Checkpoint::default();
        self.trainer.copy_state(self.step, &mut state);
        encode_state(&state)
    }
}

/// Where a member stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stand {
    step: u64,
    digest: u64,
}

impl Stand {
    fn encode(self) -> Vec<u8> {
        [self.step.to_le_bytes(), self.digest.to_le_bytes()].concat()
    }

    /// Where a member stands, and its doubt, if it has one.
    fn decode(bytes: &Bytes, microbatches: u32) -> Option<(Self, Option<Doubt>)> {
        let (step, rest) = bytes.split_first_chunk::<8>()?;
        let (digest, doubt) = rest.split_first_chunk::<8>()?;
        let stand = Self { step: u64::from_le_bytes(*step), digest: u64::from_le_bytes(*digest) };
        Some((stand, Doubt::decode(doubt, microbatches)?))
    }
}

/// Which state a generation begins with.
#[derive(Debug, PartialEq, Eq)]
enum Choice {
    Agreed(Stand),
    Disputed { step: u64, minority: Vec<usize> },
}

/// The most advanced state, if those who have it agree on it.
fn choose(stands: &[Stand]) -> Choice {
    let step = stands.iter().map(|stand| stand.step).max().unwrap_or(0);
    let furthest: Vec<(usize, Stand)> =
        stands.iter().copied().enumerate().filter(|(_, stand)| stand.step == step).collect();
    let count = |digest: u64| furthest.iter().filter(|(_, stand)| stand.digest == digest).count();
    let most =
        furthest.iter().max_by_key(|(_, stand)| (count(stand.digest), stand.digest)).map(|(_, stand)| *stand);
    let Some(best) = most else { return Choice::Disputed { step, minority: Vec::new() } };
    let others: Vec<usize> =
        furthest.iter().filter(|(_, stand)| *stand != best).map(|(rank, _)| *rank).collect();
    if others.is_empty() {
        return Choice::Agreed(best);
    }
    // Half against half: nobody knows.
    let tied = 2 * others.len() >= furthest.len();
    let minority = if tied { furthest.iter().map(|(rank, _)| *rank).collect() } else { others };
    Choice::Disputed { step, minority }
}

/// Step and number of parameters, before the values.
const STATE_HEADER_BYTES: usize = 16;

fn encode_state(state: &Checkpoint) -> Vec<u8> {
    let Checkpoint { step, params, first_moment, second_moment, curve } = state;
    let curve = serde_json::to_vec(curve).expect("a curve has a JSON form");
    let mut bytes = Vec::with_capacity(STATE_HEADER_BYTES + 12 * params.len() + curve.len());
    bytes.extend_from_slice(&step.to_le_bytes());
    bytes.extend_from_slice(&(params.len() as u64).to_le_bytes());
    for values in [params, first_moment, second_moment] {
        bytes.extend(values.iter().flat_map(|value| value.to_le_bytes()));
    }
    bytes.extend_from_slice(&curve);
    bytes
}

fn decode_state(bytes: &Bytes, parameters: usize) -> Option<Checkpoint> {
    let (step, rest) = bytes.split_first_chunk::<8>()?;
    let (count, rest) = rest.split_first_chunk::<8>()?;
    if u64::from_le_bytes(*count) != parameters as u64 {
        return None;
    }
    let (values, curve) = rest.split_at_checked(parameters.checked_mul(12)?)?;
    let curve: Vec<StepPoint> = serde_json::from_slice(curve).ok()?;
    let mut vectors = values
        .chunks(parameters.max(1) * 4)
        .map(|bytes| bytes.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect());
    let mut next = || vectors.next().unwrap_or_default();
    let (params, first_moment, second_moment) = (next(), next(), next());
    Some(Checkpoint { step: u64::from_le_bytes(*step), params, first_moment, second_moment, curve })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_most_advanced_state_that_members_agree_on_wins() {
        let check = |stands: &[(u64, u64)], expected: Choice| {
            let stands: Vec<_> =
                stands.iter().map(|(step, digest)| Stand { step: *step, digest: *digest }).collect();
            assert_eq!(choose(&stands), expected, "{stands:?}");
        };
        let agreed = |step, digest| Choice::Agreed(Stand { step, digest });
        check(&[(0, 1), (0, 1)], agreed(0, 1));
        check(&[(0, 1), (7, 2)], agreed(7, 2));
        check(&[(7, 2), (0, 1), (7, 2), (6, 9)], agreed(7, 2));
        check(&[(7, 2), (7, 3), (7, 2)], Choice::Disputed { step: 7, minority: vec![1] });
        check(&[(7, 2), (7, 3), (6, 3)], Choice::Disputed { step: 7, minority: vec![0, 1] });
    }

    proptest! {
        #[test]
        fn states_survive_the_wire(step: u64, values in proptest::collection::vec(any::<u32>(), 0..30), cut: usize) {
            let vector = |shift: u32| -> Vec<f32> {
                values.iter().map(|value| f32::from_bits(value.rotate_left(shift) & 0x7f7f_ffff)).collect()
            };
            let point = StepPoint { step, loss: 0.5, terms: vec![("a".into(), 1.0)], learning_rate: 0.1, gradient_norm: 2.0 };
            let state = Checkpoint {
                step, params: vector(0), first_moment: vector(1), second_moment: vector(2), curve: vec![point],
            };
            let bytes = encode_state(&state);
            prop_assert_eq!(decode_state(&bytes.clone().into(), values.len()), Some(state));
            let cut = cut % bytes.len();
            prop_assert_eq!(decode_state(&bytes[..cut].to_vec().into(), values.len()), None);
            prop_assert_eq!(decode_state(&bytes.into(), values.len() + 1), None);
        }
    }
}
