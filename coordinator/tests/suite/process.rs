//! The real coordinator and real sessions on loopback, with a temporary store and executors that pretend.

use crate::sample;
use crate::session::{self, Assignment, Executor, Outcome, TaskContext, TaskFailure};
use futures::FutureExt;
use retort_common::ids::TaskId;
use retort_common::net::{self, NetOptions};
use retort_common::proto::jobs_client::JobsClient;
use retort_common::proto::{self, JobState};
use retort_common::spec::JobSpec;
use retort_common::store::Store;
use retort_coordinator::driver::Probe;
use retort_coordinator::{Config, run_with};
use serde_json::Value;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::runtime::Runtime;
use tokio::sync::oneshot;
use tonic::transport::Channel;

const DETECTION: Duration = Duration::from_millis(600);

type Executions = Arc<Mutex<BTreeMap<TaskId, Vec<Value>>>>;

/// Pretends to work and remembers every execution.
struct Pretend {
    executions: Executions,
    takes: Duration,
    panics: bool,
}

impl Executor for Pretend {
    fn run(&self, assignment: Assignment, context: &TaskContext) -> Result<Outcome, TaskFailure> {
        assert!(!self.panics, "shard {} is torn", 7);
        context.log("INFO", "begins");
        let started = Instant::now();
        while started.elapsed() < self.takes {
            if context.cancelled().is_some() {
                return Err(TaskFailure { message: "stopped".into(), retryable: true });
            }
            context.progress(started.elapsed().as_millis() as u64, self.takes.as_millis() as u64, "works");
            std::thread::sleep(Duration::from_millis(2));
        }
        let meta = sample::meta(&assignment.task);
        self.executions.lock().unwrap().entry(assignment.id).or_default().push(meta.clone());
        Ok(Outcome { meta, found: false })
    }
}

/// A coordinator in a runtime of its own, so that it can be killed.
struct Coordinator {
    runtime: Option<Runtime>,
    address: String,
}

impl Coordinator {
    async fn start(folder: &std::path::Path, listen: &str, executions: &Executions) -> Self {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let store = Store::open(&folder.display().to_string()).unwrap();
        let config = Config {
            store,
            listen: listen.to_owned(),
            net: net(),
            stall_limit: Duration::from_secs(60),
            address_file: Some(folder.join("address")),
        };
        let executions = executions.clone();
        let probe: Probe = Arc::new(move |artifact| {
            let found = executions.lock().unwrap().get(&artifact.task).map(|made| (made[0].clone(), 1));
            async move { Ok(found) }.boxed()
        });
        let (sender, receiver) = oneshot::channel();
        runtime.spawn(async move {
            if let Err(error) = run_with(config, probe, std::future::pending(), Some(sender)).await {
                panic!("{error}");
            }
        });
        let address = receiver.await.unwrap().to_string();
        assert_eq!(std::fs::read_to_string(folder.join("address")).unwrap(), address);
        Self { runtime: Some(runtime), address }
    }

    /// As kill -9 would: nothing is said to anybody.
    fn kill(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl Drop for Coordinator {
    fn drop(&mut self) {
        self.kill();
    }
}

fn net() -> NetOptions {
    NetOptions { tls: None, failure_detection: DETECTION }
}

fn worker(name: &str, address: &str, executor: Pretend) -> tokio::task::JoinHandle<()> {
    let config = session::Config {
        coordinators: vec![address.to_owned()],
        worker: name.parse().unwrap(),
        device: "pretended".into(),
        kernels: "none".into(),
        memory_bytes: 0,
        fingerprint: "f1".into(),
        threads: 1,
        version: "0".into(),
        exchange_address: String::new(),
        net: net(),
    };
    tokio::spawn(
        async move { session::run(config, Arc::new(executor), std::future::pending()).await.unwrap() },
    )
}

fn pretend(executions: &Executions) -> Pretend {
    Pretend { executions: executions.clone(), takes: Duration::from_millis(15), panics: false }
}

fn client(address: &str) -> JobsClient<Channel> {
    JobsClient::new(net::channel(address, &net()).unwrap())
}

fn request(request: &str, spec: &JobSpec) -> proto::SubmitRequest {
    proto::SubmitRequest {
        request_id: request.to_owned(),
        spec_json: serde_json::to_string(spec).unwrap(),
        inputs_json: serde_json::to_string(&sample::inputs("a")).unwrap(),
    }
}

/// Watches a job to its end, over any number of coordinators.
async fn wait(address: &str, job: &str) -> proto::Job {
    let started = Instant::now();
    let mut last = None;
    while started.elapsed() < Duration::from_secs(60) {
        let mut client = client(address);
        if let Ok(stream) = client.watch(proto::WatchRequest { job_id: job.to_owned() }).await {
            let mut stream = stream.into_inner();
            while let Ok(Some(message)) = stream.message().await {
                let job = message.job.unwrap();
                if job.state() as i32 >= JobState::Succeeded as i32 && job.state() != JobState::Paused {
                    return job;
                }
                last = Some(job);
            }
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("the job never ended: {last:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_survives_the_coordinators_death_and_does_nothing_twice() {
    let folder = tempfile::tempdir().unwrap();
    let executions = Executions::default();
    let mut coordinator = Coordinator::start(folder.path(), "127.0.0.1:0", &executions).await;
    let address = coordinator.address.clone();
    let workers =
        [worker("w1", &address, pretend(&executions)), worker("w2", &address, pretend(&executions))];
    let spec = sample::full("demo", 1);
    let submitted = client(&address).submit(request("r1", &spec)).await.unwrap().into_inner();
    assert!(submitted.created && submitted.job_id.starts_with("demo-"));
    for enough in [3, 12, 25] {
        while executions.lock().unwrap().len() < enough {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        coordinator.kill();
        tokio::time::sleep(Duration::from_millis(100)).await;
        coordinator = Coordinator::start(folder.path(), &address, &executions).await;
    }
    let job = wait(&address, &submitted.job_id).await;
    assert_eq!(job.state(), JobState::Succeeded, "{}", job.reason);
    assert!(job.report_url.ends_with(&format!("jobs/{}/report", job.id)), "{}", job.report_url);
    assert_eq!(job.fingerprint, "f1");
    assert!(job.stages.iter().all(|stage| stage.done == stage.tasks && stage.complete_plan));
    let counts: Vec<_> = executions.lock().unwrap().values().map(Vec::len).collect();
    assert!(counts.len() > 30 && counts.iter().all(|count| *count == 1), "{counts:?}");
    // A repeated submit after all of this is the same job.
    let again = client(&address).submit(request("r1", &spec)).await.unwrap().into_inner();
    assert_eq!((again.created, again.job_id), (false, submitted.job_id));
    let listed =
        client(&address).list_workers(proto::ListWorkersRequest {}).await.unwrap().into_inner().workers;
    assert_eq!(listed.iter().map(|worker| worker.id.as_str()).collect::<Vec<_>>(), ["w1", "w2"]);
    workers.iter().for_each(tokio::task::JoinHandle::abort);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refusals_have_their_codes() {
    let folder = tempfile::tempdir().unwrap();
    let coordinator = Coordinator::start(folder.path(), "127.0.0.1:0", &Executions::default()).await;
    let mut client = client(&coordinator.address);
    let missing = client.get(proto::GetRequest { job_id: "nothing".into() }).await.unwrap_err();
    assert_eq!(missing.code(), tonic::Code::NotFound);
    let mut torn = request("r1", &sample::small("demo"));
    torn.spec_json.truncate(20);
    assert_eq!(client.submit(torn).await.unwrap_err().code(), tonic::Code::InvalidArgument);
    let one = client.submit(request("r1", &sample::small("demo"))).await.unwrap().into_inner();
    let reused = client.submit(request("r1", &sample::small("other"))).await.unwrap_err();
    assert_eq!(reused.code(), tonic::Code::AlreadyExists);
    client.submit(request("r2", &sample::small("demo"))).await.unwrap();
    let unclear = client.get(proto::GetRequest { job_id: "demo-".into() }).await.unwrap_err();
    assert_eq!(unclear.code(), tonic::Code::InvalidArgument);
    let job =
        client.get(proto::GetRequest { job_id: one.job_id.clone() }).await.unwrap().into_inner().job.unwrap();
    assert!(job.reason.contains("none is connected"), "{}", job.reason);
    let cancel = proto::CancelRequest { job_id: one.job_id.clone(), force: false };
    let job = client.cancel(cancel).await.unwrap().into_inner().job.unwrap();
    assert_eq!((job.state(), job.stage.as_str()), (JobState::Cancelled, "shard"));
    let live = client.list(proto::ListRequest { all: false }).await.unwrap().into_inner().jobs;
    let all = client.list(proto::ListRequest { all: true }).await.unwrap().into_inner().jobs;
    assert_eq!((live.len(), all.len()), (1, 2));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_panic_in_a_task_fails_its_job_with_the_text() {
    let folder = tempfile::tempdir().unwrap();
    let executions = Executions::default();
    let coordinator = Coordinator::start(folder.path(), "127.0.0.1:0", &executions).await;
    let worker = worker("w1", &coordinator.address, Pretend { panics: true, ..pretend(&executions) });
    let mut client = client(&coordinator.address);
    let submitted = client.submit(request("r1", &sample::small("demo"))).await.unwrap().into_inner();
    let job = wait(&coordinator.address, &submitted.job_id).await;
    assert_eq!(job.state(), JobState::Failed);
    assert!(job.reason.contains("shard 7 is torn") && job.reason.contains("w1"), "{}", job.reason);
    let logs = proto::LogsRequest { job_id: job.id.clone(), ..Default::default() };
    let mut lines = client.logs(logs).await.unwrap().into_inner();
    let mut text = String::new();
    while let Some(line) = lines.message().await.unwrap() {
        text.push_str(&line.message);
    }
    assert!(
        text.contains("accepted") && text.contains("trying again") && text.contains("given up"),
        "{text}"
    );
    worker.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_coordinator_fences_the_first() {
    let folder = tempfile::tempdir().unwrap();
    let executions = Executions::default();
    let first = Coordinator::start(folder.path(), "127.0.0.1:0", &executions).await;
    let second = Coordinator::start(folder.path(), "127.0.0.1:0", &executions).await;
    // The first finds out when it next has something to remember, and acknowledges nothing.
    let refused = client(&first.address).submit(request("r1", &sample::small("demo"))).await;
    assert!(refused.is_err());
    assert!(
        client(&second.address)
            .submit(request("r1", &sample::small("demo")))
            .await
            .unwrap()
            .into_inner()
            .created
    );
}
