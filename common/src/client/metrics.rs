//! The steps of a job's trainings, as a stream.

use super::{Client, ClientError, JobsClient, Retry};
use crate::metrics::{StepPoint, StepTiming, decode_point};
use crate::proto;
use std::collections::BTreeMap;
use tonic::Streaming;
use tonic::transport::Channel;

/// One step of one training.
#[derive(Clone, Debug, PartialEq)]
pub struct StepView {
    /// The training's digest, hex.
    pub task: String,
    /// The history it belongs to.
    pub lineage: String,
    /// The student's name.
    pub student: String,
    /// The student's phase, from 1.
    pub phase: u32,
    /// The step's figures.
    pub point: StepPoint,
    /// Questions a second; nothing where no timing is known any more.
    pub samples_per_second: Option<f64>,
    /// Where each worker's time went, as far as it is known.
    pub workers: Vec<(String, StepTiming)>,
}

/// The steps of a job's trainings, each once. With follow it reconnects by itself and goes on where it was;
/// [`Steps::next`] may be dropped and called again at any time.
pub struct Steps {
    client: Client,
    request: proto::MetricsRequest,
    stream: Option<Streaming<proto::MetricsResponse>>,
    retry: Retry,
    /// The last step that was returned of each training's lineages, student by student: they may share a training.
    returned: BTreeMap<(String, String, String), u64>,
    ended: bool,
}

impl Steps {
    pub(super) fn new(client: &Client, id: &str, follow: bool) -> Self {
        let request = proto::MetricsRequest { job_id: id.to_owned(), follow };
        let (client, retry, returned) = (client.clone(), Retry::new(client.patience), BTreeMap::new());
        Self { client, request, stream: None, retry, returned, ended: false }
    }

    /// The next step; nothing at the end.
    pub async fn next(&mut self) -> Result<Option<StepView>, ClientError> {
        loop {
            if self.ended {
                return Ok(None);
            }
            match self.step().await {
                Ok(Some(step)) if self.is_new(&step) => {
                    self.retry.renew(self.client.reconnect_limit);
                    return Ok(Some(step));
                }
                Ok(Some(_)) => {}
                Ok(None) => self.ended = true,
                Err(error) => {
                    self.stream = None;
                    self.retry.pause(error).await?;
                }
            }
        }
    }

    /// A new connection begins with the first step again.
    fn is_new(&mut self, step: &StepView) -> bool {
        let key = (step.student.clone(), step.task.clone(), step.lineage.clone());
        let last = self.returned.entry(key).or_default();
        let new = step.point.step > *last;
        *last = step.point.step.max(*last);
        new
    }

    async fn step(&mut self) -> Result<Option<StepView>, ClientError> {
        let stream = match &mut self.stream {
            Some(stream) => stream,
            None => {
                let request = self.request.clone();
                let call = async |mut jobs: JobsClient<Channel>| jobs.metrics(request.clone()).await;
                self.stream.insert(self.client.round(&call).await?)
            }
        };
        let message = stream.message().await;
        let url = self.client.servers[self.client.current].0.clone();
        match message {
            Ok(Some(step)) => decode(step).map(Some),
            Ok(None) if !self.request.follow => Ok(None),
            Ok(None) if self.client.get(&self.request.job_id).await?.state.has_ended() => Ok(None),
            Ok(None) => Err(ClientError::Unreachable(format!("{url}: the coordinator ended the stream"))),
            Err(status) => Err(ClientError::of(&url, &status)),
        }
    }
}

fn decode(step: proto::MetricsResponse) -> Result<StepView, ClientError> {
    let proto::MetricsResponse { task, lineage, student, phase, step, point, samples_per_second, workers } =
        step;
    let missing = || ClientError::Answer(format!("step {step} without figures"));
    let point = decode_point(step, point.ok_or_else(missing)?);
    let point = point.map_err(|error| ClientError::Answer(error.to_string()))?;
    let worker = |proto::WorkerTiming { worker, timing }| (worker, timing.unwrap_or_default().into());
    let workers = workers.into_iter().map(worker).collect();
    Ok(StepView { task, lineage, student, phase, point, samples_per_second, workers })
}
