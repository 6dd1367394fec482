//! What a job does, live on stderr: bars on a terminal, occasional lines elsewhere.

use crate::output::duration;
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use retort_common::view::{JobView, StageView};
use std::collections::HashMap;
use std::io::IsTerminal;
use std::time::Duration;
use tokio::time::Instant;

/// Parts of a bar.
const PARTS: u64 = 1000;
/// Least time between two lines about the same stage where no terminal is.
const LINE_PAUSE: Duration = Duration::from_secs(10);

/// Shows one job.
pub enum Progress {
    /// One bar for each stage.
    Bars { all: MultiProgress, bars: HashMap<String, ProgressBar> },
    /// One line when a stage begins or ends, and now and then between.
    Lines { said: HashMap<String, Said> },
}

/// What was last said of a stage.
pub struct Said {
    at: Instant,
    done: bool,
}

impl Progress {
    /// Bars on a terminal, lines elsewhere.
    pub fn new() -> Self {
        // NO_COLOR is about colour, which neither form has.
        if std::io::stderr().is_terminal() {
            let all = MultiProgress::with_draw_target(ProgressDrawTarget::stderr_with_hz(5));
            Progress::Bars { all, bars: HashMap::new() }
        } else {
            Progress::Lines { said: HashMap::new() }
        }
    }

    /// Shows the job as it stands.
    pub fn show(&mut self, job: &JobView) {
        // A stage without tasks has nothing to show yet.
        for stage in job.stages.iter().filter(|stage| stage.tasks > 0) {
            match self {
                Progress::Bars { all, bars } => {
                    let bar = bars.entry(stage.name.clone()).or_insert_with(|| all.add(new_bar(&stage.name)));
                    bar.set_position(if stage.is_done() {
                        PARTS
                    } else {
                        (stage.fraction * PARTS as f64) as u64
                    });
                    bar.set_message(words(stage));
                }
                Progress::Lines { said } => say_sometimes(said, stage),
            }
        }
    }

    /// A line of text beside the progress.
    pub fn say(&self, text: &str) {
        match self {
            // A terminal that went away is no reason to stop a job.
            Progress::Bars { all, .. } => drop(all.println(text)),
            Progress::Lines { .. } => eprintln!("{text}"),
        }
    }

    /// Leaves the bars as they are.
    pub fn finish(&self) {
        if let Progress::Bars { bars, .. } = self {
            bars.values().for_each(ProgressBar::abandon);
        }
    }
}

fn new_bar(stage: &str) -> ProgressBar {
    let style = ProgressStyle::with_template("{prefix:>9} [{bar:24}] {wide_msg}");
    let style = style.expect("the template is valid").progress_chars("=> ");
    ProgressBar::new(PARTS).with_style(style).with_prefix(stage.to_owned())
}

fn say_sometimes(said: &mut HashMap<String, Said>, stage: &StageView) {
    let idle = stage.running == 0 && !stage.is_done();
    let due = match said.get(&stage.name) {
        None => !idle,
        Some(last) => {
            last.done != stage.is_done() || (!idle && !last.done && last.at.elapsed() >= LINE_PAUSE)
        }
    };
    if due {
        eprintln!("{:>9}  {}", stage.name, words(stage));
        said.insert(stage.name.clone(), Said { at: Instant::now(), done: stage.is_done() });
    }
}

/// A stage's numbers, e.g. "3/8 tasks, 2 cached, eta 1m20s, step 120/400".
fn words(stage: &StageView) -> String {
    let open = if stage.complete_plan { "" } else { "+" };
    let mut text = format!("{}/{}{open} tasks", stage.done, stage.tasks);
    if stage.cached > 0 {
        text += &format!(", {} cached", stage.cached);
    }
    if stage.is_done() {
        return if stage.seconds > 0.0 { text + &format!(", {}", duration(stage.seconds)) } else { text };
    }
    if let Some(eta) = stage.eta_seconds {
        text += &format!(", {:.0}%, eta {}", stage.fraction * 100.0, duration(eta));
    }
    if !stage.detail.is_empty() {
        text += &format!(", {}", stage.detail);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stage_is_told_in_numbers() {
        let mut stage = StageView {
            name: "train".into(),
            tasks: 4,
            done: 1,
            cached: 1,
            running: 1,
            seconds: 3.0,
            fraction: 0.5,
            eta_seconds: Some(80.0),
            detail: "step 1/2".into(),
            complete_plan: false,
        };
        assert_eq!(words(&stage), "1/4+ tasks, 1 cached, 50%, eta 1m20s, step 1/2");
        (stage.done, stage.complete_plan, stage.cached) = (4, true, 0);
        assert_eq!(words(&stage), "4/4 tasks, 3.0s");
    }
}
