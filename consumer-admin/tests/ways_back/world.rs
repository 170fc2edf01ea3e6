//! One topic or queue of a test, and what an outsider sees.

use std::{
    collections::BTreeMap,
    env, fs,
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    thread,
    time::{Duration, Instant},
};

use consumer_admin::Broker;
use consumer_core::{Message, Outgoing, Publisher};
use consumer_kafka::KafkaAdmin;
use tokio::runtime::Runtime;
use xtask::servers::{shared_kafka, shared_rabbitmq, shared_redis};

use super::fuse::Step;

pub(crate) const KAFKA: &str = "kafka";
pub(crate) const RABBITMQ: &str = "rabbitmq";
pub(crate) const MESSAGES: usize = 12;
const PATIENCE: Duration = Duration::from_secs(120);

pub(crate) struct World {
    pub(crate) url: String,
    pub(crate) topic: String,
    pub(crate) redis: String,
    folder: tempfile::TempDir,
    pub(crate) runtime: Runtime,
}

impl World {
    pub(crate) fn new(kind: &str) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let nth = NEXT.fetch_add(1, Ordering::Relaxed);
        let url = if kind == KAFKA { format!("kafka://{}", shared_kafka()) } else { shared_rabbitmq() };
        let at = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_millis();
        let world = Self {
            url,
            topic: format!("ways-{}-{nth}-{at}", std::process::id()),
            redis: shared_redis(),
            folder: tempfile::tempdir().unwrap(),
            runtime: Runtime::new().unwrap(),
        };
        world.create(kind);
        world
    }

    fn create(&self, kind: &str) {
        self.runtime.block_on(async {
            if kind == KAFKA {
                let admin = KafkaAdmin::from_url(&self.url).unwrap();
                for topic in [self.topic.clone(), self.dead()] {
                    admin.ensure_topic(&topic, 2, &[]).await.unwrap();
                }
            } else {
                let admin = consumer_amqp::AmqpAdmin::new(&self.url).unwrap();
                let queue = consumer_amqp::Queue::quorum(&*self.topic).dead_letter(self.dead());
                admin.ensure_queue(queue).await.unwrap();
            }
        });
    }

    pub(crate) fn dead(&self) -> String {
        format!("{}.dead", self.topic)
    }

    pub(crate) fn publish(&self) {
        self.runtime.block_on(async {
            let publisher = Broker::from_url(&*self.url).unwrap().publisher().unwrap();
            for nth in 0..MESSAGES {
                publisher.publish(self.outgoing(nth, "payload")).await.unwrap();
            }
        });
    }

    /// The message of this number, with a payload.
    pub(crate) fn outgoing(&self, nth: usize, payload: &'static str) -> Outgoing {
        let message = Message::builder().payload(payload).key(format!("k-{nth}")).id(format!("m-{nth}"));
        Outgoing::new(&*self.topic, message.build())
    }

    fn log(&self) -> PathBuf {
        self.folder.path().join("calls")
    }

    /// Runs a child of this test binary to its end; true if it ended well, false if by SIGKILL.
    pub(crate) fn run(&self, work: &str, step: Option<Step>) -> bool {
        let mut child = Command::new(env::current_exe().unwrap());
        child.args(["--exact", "child::process", "--include-ignored", "--nocapture"]);
        child.env("WAYS_BACK_WORK", work).env("WAYS_BACK_URL", &self.url).env("WAYS_BACK_TOPIC", &self.topic);
        child.env("WAYS_BACK_REDIS", &self.redis).env("WAYS_BACK_LOG", self.log());
        child.env("WAYS_BACK_STEP", step.map(Step::name).unwrap_or_default());
        let output = fs::File::create(self.folder.path().join("output")).unwrap();
        child.stdout(output.try_clone().unwrap()).stderr(output).stdin(Stdio::null());
        let status = wait(child.spawn().unwrap());
        let said = fs::read_to_string(self.folder.path().join("output")).unwrap_or_default();
        match status.code() {
            Some(0) => true,
            Some(code) => panic!("{work} {step:?} ended with {code}: {said}"),
            None => false,
        }
    }

    /// Calls of the handler by message: the attempt, and whether it succeeded.
    pub(crate) fn calls(&self) -> BTreeMap<String, Vec<(u32, bool)>> {
        let mut calls: BTreeMap<String, Vec<(u32, bool)>> = BTreeMap::new();
        for line in fs::read_to_string(self.log()).unwrap_or_default().lines() {
            let mut parts = line.split(' ');
            let id = parts.next().unwrap().to_owned();
            let attempt = parts.next().unwrap().parse().unwrap();
            calls.entry(id).or_default().push((attempt, parts.next() == Some("ok")));
        }
        calls
    }

    /// Ids and redrive counts of the dead letters that are left.
    pub(crate) fn dead_letters(&self) -> Vec<(String, u32)> {
        self.runtime.block_on(async {
            let broker = Broker::from_url(&*self.url).unwrap();
            let mut letters = broker.dead_letters(&self.dead()).unwrap().open().await.unwrap();
            let mut left = Vec::new();
            while let Some(letter) = letters.next().await.unwrap() {
                left.push((letter.id().unwrap().into_owned(), letter.redrive_count()));
            }
            letters.close().await.unwrap();
            left
        })
    }
}

fn wait(mut child: Child) -> std::process::ExitStatus {
    let began = Instant::now();
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status;
        }
        assert!(began.elapsed() < PATIENCE || child.kill().is_err(), "a child does not end");
        thread::sleep(Duration::from_millis(10));
    }
}
