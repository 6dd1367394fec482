//! What happens next, as pure functions of what has happened.
//!
//! - [`decide`]: state, time and an input to facts, commands and a reply; it changes nothing
//! - [`apply`]: a fact into the state; replaying the durable facts gives the state back
//! - [`step`]: an input and everything that follows from it
//! - [`state`]: jobs, tasks and workers; [`fact`], [`input`]: the vocabulary
//! - [`place`]: which ready task goes to which idle worker
//! - [`metrics`]: what trainings say of their steps
//! - `cohort`: who trains together, and `deal`: who computes how much
//! - [`plan`]: a job's tasks, as far as they can be known
//! - [`view`]: jobs and workers as people see them
//!
//! There is no clock, randomness, I/O, async or hash map here; `tests/tidy.rs` looks for them.

mod advance;
mod apply;
mod cohort;
mod deal;
pub mod decide;
pub mod fact;
pub mod input;
pub mod metrics;
pub mod place;
pub mod plan;
mod sessions;
pub mod state;
pub mod view;

pub use advance::INCARNATION;
pub use apply::apply;
pub use decide::decide;
pub use fact::{Fact, Outcome};
pub use input::{Command, Decision, HelloInfo, Input, Refusal, Reply};
pub use state::State;

/// Rounds of follow-up decisions after one input. Each round plans, deals or ends something, so that more
/// than a few mean an error in this module.
const MAX_ROUNDS: usize = 64;

/// Decides on `input` and on everything that follows from it, and applies the facts. Nothing of the decisions
/// may leave the process before their durable facts are in the journal.
pub fn step(state: &mut State, now_ms: u64, input: Input) -> Vec<Decision> {
    let quiet = matches!(
        input,
        Input::Beat { .. } | Input::Progress { .. } | Input::Metrics { .. } | Input::Log { .. }
    );
    let first = decide(state, now_ms, input);
    first.facts.iter().for_each(|fact| apply(state, fact));
    let mut decisions = vec![first];
    // A beat changes nothing that a plan or a placement looks at.
    let mut rounds = if quiet { 0 } else { MAX_ROUNDS };
    while rounds > 0 {
        let next = decide(state, now_ms, Input::Advance);
        if next.facts.is_empty() {
            break;
        }
        next.facts.iter().for_each(|fact| apply(state, fact));
        decisions.push(next);
        rounds -= 1;
    }
    decisions
}
