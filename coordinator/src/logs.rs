//! The newest log records of every job, in memory. A restart begins with empty logs: what matters is in
//! facts, reasons and reports.

use retort_common::ids::{JobId, WorkerId};
use retort_common::task::Stage;
use std::collections::{BTreeMap, VecDeque};

/// Records kept for each job.
pub const LINES_PER_JOB: usize = 10_000;
/// Jobs whose records are kept; the oldest log goes first.
pub const JOBS_WITH_LOGS: usize = 200;

/// One record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogLine {
    /// Where in the job's log, from 1.
    pub sequence: u64,
    /// When the coordinator received it; for display only.
    pub unix_ms: u64,
    /// INFO, WARN or ERROR.
    pub level: String,
    /// Who said it; nobody for the coordinator.
    pub worker: Option<WorkerId>,
    /// About which stage.
    pub stage: Option<Stage>,
    /// The text.
    pub message: String,
}

/// Which records of a job to read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LogFilter {
    /// Only records after this one.
    pub after: u64,
    /// Only the newest; 0 means all.
    pub tail: usize,
    /// Only this worker's; empty means everyone's.
    pub worker: String,
    /// Only this stage's; empty means every one's.
    pub stage: String,
}

#[derive(Default)]
struct JobLog {
    last: u64,
    lines: VecDeque<LogLine>,
}

/// The logs of all jobs.
#[derive(Default)]
pub struct Logs {
    jobs: BTreeMap<JobId, JobLog>,
    oldest: VecDeque<JobId>,
}

impl Logs {
    /// Adds a record; its sequence is set here.
    pub fn push(&mut self, job: JobId, line: LogLine) {
        if !self.jobs.contains_key(&job) {
            if self.oldest.len() >= JOBS_WITH_LOGS
                && let Some(old) = self.oldest.pop_front()
            {
                self.jobs.remove(&old);
            }
            self.oldest.push_back(job.clone());
        }
        let log = self.jobs.entry(job).or_default();
        log.last += 1;
        if log.lines.len() >= LINES_PER_JOB {
            log.lines.pop_front();
        }
        log.lines.push_back(LogLine { sequence: log.last, ..line });
    }

    /// The records that pass, oldest first, and the number of the job's last record.
    pub fn read(&self, job: &JobId, filter: &LogFilter) -> (Vec<LogLine>, u64) {
        let Some(log) = self.jobs.get(job) else { return (Vec::new(), filter.after) };
        let passes = |line: &&LogLine| {
            line.sequence > filter.after
                && (filter.worker.is_empty()
                    || line.worker.as_ref().is_some_and(|id| id.as_str() == filter.worker))
                && (filter.stage.is_empty() || line.stage.is_some_and(|stage| stage.name() == filter.stage))
        };
        let limit = if filter.tail == 0 { usize::MAX } else { filter.tail };
        let mut lines: Vec<_> = log.lines.iter().rev().filter(passes).take(limit).cloned().collect();
        lines.reverse();
        (lines, log.last)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(message: &str, stage: Option<Stage>) -> LogLine {
        let (level, message) = ("INFO".to_owned(), message.to_owned());
        LogLine { sequence: 0, unix_ms: 0, level, worker: None, stage, message }
    }

    #[test]
    fn logs_are_bounded_numbered_and_filtered() {
        let (mut logs, job) = (Logs::default(), "j".parse::<JobId>().unwrap());
        for number in 0..LINES_PER_JOB + 5 {
            let stage = if number % 2 == 0 { Stage::Embed } else { Stage::Train };
            logs.push(job.clone(), line(&number.to_string(), Some(stage)));
        }
        let (all, last) = logs.read(&job, &LogFilter::default());
        assert_eq!((all.len(), last), (LINES_PER_JOB, LINES_PER_JOB as u64 + 5));
        assert_eq!(all[0].sequence, 6);
        let filter = LogFilter { tail: 2, stage: "train".into(), ..LogFilter::default() };
        let (tail, _) = logs.read(&job, &filter);
        assert_eq!(tail.iter().map(|line| line.sequence).collect::<Vec<_>>(), [last - 3, last - 1]);
        assert!(logs.read(&job, &LogFilter { after: last, ..LogFilter::default() }).0.is_empty());
    }

    #[test]
    fn the_oldest_log_makes_room() {
        let mut logs = Logs::default();
        for number in 0..=JOBS_WITH_LOGS {
            logs.push(format!("j{number}").parse().unwrap(), line("x", None));
        }
        let read = |id: &str| logs.read(&id.parse().unwrap(), &LogFilter::default()).0.len();
        assert_eq!((read("j0"), read("j1")), (0, 1));
    }
}
