//! One simulated agent: joins, reports, takes up runs, delivers results; keeps what was not acknowledged.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use ed25519_dalek::SigningKey;
use hyper::{Method, StatusCode};
use rcgen::{CertificateParams, KeyPair};
use sha2::{Digest, Sha256};
use tokio::sync::watch;
use tokio::time::Instant;
use whetstone_model::action::{Action, Severity};
use whetstone_model::evidence::Finding;
use whetstone_model::ids::RunId;
use whetstone_model::wire::{
    BladeFacts, BurnInOrder, GpuFacts, Item, ItemBody, JoinAnswer, JoinRequest, MAX_ITEMS, Order,
    ReportAnswer, ReportRequest, RunProgress,
};

use crate::client::{Client, Tls};
use crate::readings::reading;
use crate::report::{self, Run};
use crate::{Command, End, FleetBlade, Options, Stats, now_ms};

const AGAIN: Duration = Duration::from_millis(500);
const MINUTE: Duration = Duration::from_secs(60);
/// Its multiples fill the interval from 0 to 1 evenly, however many they are.
const GOLDEN: f64 = 0.618_033_988_749_895;

/// A run that goes on.
struct Going {
    order: BurnInOrder,
    started_ms: i64,
    until: Instant,
    end: End,
}

pub struct Agent {
    place: usize,
    blade: FleetBlade,
    options: Arc<Options>,
    tls: Tls,
    stats: Arc<Stats>,
    commanded: watch::Receiver<Command>,
    instance: String,
    stream: String,
    key: SigningKey,
    /// Of its certificate: the same one however often it asks, as a lost answer is asked for again.
    certificate_key: KeyPair,
    spool: VecDeque<Item>,
    seq: u64,
    /// Up to where the operator said that it has all.
    acked: Option<u64>,
    /// Readings so far, and when the next minute's are due.
    measured: u64,
    readings_due: Option<Instant>,
    /// The fault that was said last, and when.
    standing: Option<String>,
    said: Option<Instant>,
    run: Option<Going>,
    last_run: Option<RunId>,
    runs: usize,
    facts_sent: bool,
}

impl Agent {
    pub fn new(
        place: usize,
        blade: FleetBlade,
        options: Arc<Options>,
        tls: Tls,
        stats: Arc<Stats>,
        commanded: watch::Receiver<Command>,
    ) -> anyhow::Result<Agent> {
        // From the serial: the same fleet twice is the same machines.
        let seed: [u8; 32] =
            Sha256::digest(format!("key {}{}", blade.serial, options.machine).as_bytes()).into();
        let id = |what: &str| {
            hex::encode(
                Sha256::digest(format!("{what} {}{}", blade.serial, options.machine).as_bytes())
                    .get(..16)
                    .unwrap_or_default(),
            )
        };
        Ok(Agent {
            place,
            instance: id("instance"),
            stream: id("stream"),
            key: SigningKey::from_bytes(&seed),
            certificate_key: KeyPair::generate()?,
            blade,
            options,
            tls,
            stats,
            commanded,
            spool: VecDeque::new(),
            seq: 0,
            acked: None,
            measured: 0,
            readings_due: None,
            standing: None,
            said: None,
            run: None,
            last_run: None,
            runs: 0,
            facts_sent: false,
        })
    }

    pub async fn run(mut self) {
        // Spread: a site's agents do not start in one millisecond.
        tokio::time::sleep(Duration::from_millis(self.place as u64 % 1000)).await;
        let mut client = loop {
            match self.join().await {
                Ok(Some(client)) => break client,
                Ok(None) => return,
                Err(_) => {
                    Stats::add(&self.stats.failures, 1);
                    tokio::time::sleep(AGAIN).await;
                }
            }
        };
        Stats::add(&self.stats.joined, 1);
        loop {
            let wait = match self.turn(&mut client).await {
                Ok(wait) => wait,
                Err(_) => {
                    Stats::add(&self.stats.failures, 1);
                    AGAIN
                }
            };
            let run_ends = self.run.as_ref().filter(|run| run.end != End::Lost).map(|run| run.until);
            let next = Instant::now() + wait;
            tokio::select! {
                () = tokio::time::sleep_until(run_ends.map_or(next, |end| end.min(next))) => {}
                // A fault is reported at once.
                changed = self.commanded.changed() => if changed.is_err() { return },
            }
        }
    }

    /// `None`: refused for good.
    async fn join(&mut self) -> anyhow::Result<Option<Client>> {
        if self.commanded.borrow().cut_off {
            anyhow::bail!("cut off");
        }
        let csr_pem = CertificateParams::default().serialize_request(&self.certificate_key)?.pem()?;
        let request = JoinRequest {
            serial: self.blade.serial.clone(),
            token: self.blade.token.clone(),
            csr_pem,
            instance: self.instance.clone(),
            report_key: hex::encode(self.key.verifying_key().as_bytes()),
            facts: self.facts()?,
        };
        let mut client = Client::new(self.tls.clone(), self.tls.config(None)?);
        let (status, body) =
            client.call(Method::POST, "/v1/join", serde_json::to_vec(&request)?, false).await?;
        if status.is_client_error() && status != StatusCode::TOO_MANY_REQUESTS {
            Stats::add(&self.stats.refused, 1);
            return Ok(None);
        }
        anyhow::ensure!(status.is_success(), "join: {status}");
        let answer: JoinAnswer = serde_json::from_slice(&body)?;
        let config =
            self.tls.config(Some((&answer.certificate_pem, &self.certificate_key.serialize_pem())))?;
        Ok(Some(Client::new(self.tls.clone(), config)))
    }

    fn facts(&self) -> anyhow::Result<BladeFacts> {
        let gpu = |index| {
            Ok(GpuFacts {
                uuid: report::gpu(&self.blade.serial, index)?,
                name: Some("H100 (sim)".to_owned()),
                serial: None,
                pci: None,
            })
        };
        Ok(BladeFacts {
            serial: Some(self.blade.serial.to_string()),
            hostname: Some(format!("sim-{}", self.place)),
            sku: Some(self.options.sku.clone()),
            gpus: (0..self.options.gpus).map(gpu).collect::<anyhow::Result<_>>()?,
            driver: Some("580.0".to_owned()),
            kernel: Some("sim".to_owned()),
            nvlink_cluster: None,
            boot_id: Some(self.instance.clone()),
            agent_version: env!("CARGO_PKG_VERSION").to_owned(),
            simulated: true,
        })
    }

    fn say(&mut self, body: ItemBody, command: &Command) {
        self.seq += 1;
        self.spool.push_back(Item { seq: self.seq, at_ms: now_ms() + command.skew_ms, body });
    }

    /// One report and what follows from its answer; how long to wait then.
    async fn turn(&mut self, client: &mut Client) -> anyhow::Result<Duration> {
        let command = self.commanded.borrow_and_update().clone();
        self.notice(&command)?;
        self.measure(&command)?;
        if command.cut_off {
            return Ok(AGAIN);
        }
        if let Some(done) = self.run.take_if(|run| run.end != End::Lost && run.until <= Instant::now())
            && let Err(error) = self.deliver(client, &done).await
        {
            self.run = Some(done);
            return Err(error);
        }
        let items: Vec<Item> = self.spool.iter().take(MAX_ITEMS).cloned().collect();
        let request = ReportRequest {
            serial: self.blade.serial.clone(),
            instance: self.instance.clone(),
            boot_id: Some(self.instance.clone()),
            now_ms: now_ms() + command.skew_ms,
            stream: self.stream.clone(),
            spooled: self.spool.len() as u64,
            items,
            acked: self.acked,
            dropped: 0,
            facts: if self.facts_sent { None } else { Some(self.facts()?) },
            run: self.run.as_ref().filter(|run| run.end != End::Lost).map(|run| RunProgress {
                run: run.order.run,
                test: "sim".to_owned(),
                number: 1,
                of: 1,
                done: 0.5,
                doing: "simulating".to_owned(),
            }),
            usage: None,
        };
        let body = serde_json::to_vec(&request)?;
        let times = if command.repeats { 2 } else { 1 };
        let mut last = None;
        for _ in 0..times {
            last = Some(client.call(Method::POST, "/v1/report", body.clone(), false).await?);
        }
        let Some((status, answer)) = last else { return Ok(AGAIN) };
        Stats::add(&self.stats.reports, times);
        if status.is_client_error() {
            Stats::add(&self.stats.refused, 1);
            return Ok(AGAIN * 4);
        }
        anyhow::ensure!(status.is_success(), "report: {status}");
        let answer: ReportAnswer = serde_json::from_slice(&answer)?;
        self.facts_sent = true;
        self.acked = Some(answer.acked);
        if answer.say_again {
            (self.standing, self.facts_sent) = (None, false);
        }
        Stats::add(&self.stats.items, request.items.len() as u64);
        Stats::add(&self.stats.bytes, body.len() as u64 * times);
        if !command.repeats {
            while self.spool.front().is_some_and(|item| item.seq <= answer.acked) {
                self.spool.pop_front();
                Stats::add(&self.stats.acked, 1);
            }
        }
        if let Some(said) = self.said.take_if(|_| answer.acked >= self.seq) {
            Stats::add(&self.stats.fault_ms, said.elapsed().as_millis() as u64);
            Stats::add(&self.stats.faults, 1);
        }
        if let Some(Order::CancelRun { run }) = &answer.order {
            self.run.take_if(|going| going.order.run == *run);
        }
        if let Some(Order::BurnIn(order)) = answer.order
            && self.last_run.is_none_or(|last| order.run > last)
        {
            self.begin(order);
            return Ok(Duration::ZERO);
        }
        if command.flood {
            return Ok(Duration::ZERO);
        }
        Ok(self.options.report_every.unwrap_or(Duration::from_millis(answer.next_report_ms)))
    }

    /// Says what changed since it was last asked.
    fn notice(&mut self, command: &Command) -> anyhow::Result<()> {
        if command.fault == self.standing {
            return Ok(());
        }
        let finding = |code: &str| {
            Ok::<_, anyhow::Error>(Finding {
                code: code.to_owned(),
                device: Some(report::gpu(&self.blade.serial, 3 % self.options.gpus.max(1))?),
                severity: Severity::Fault,
                action: Action::Reboot,
                detail: format!("{code} on gpu3 (sim)"),
                reading: None,
            })
        };
        let (before, now) = (
            self.standing.as_deref().map(finding).transpose()?,
            command.fault.as_deref().map(finding).transpose()?,
        );
        if let Some(finding) = before {
            self.say(ItemBody::Cleared { finding }, command);
        }
        if let Some(finding) = now {
            self.say(ItemBody::Appeared { finding }, command);
            self.said = Some(Instant::now());
        }
        self.standing = command.fault.clone();
        Ok(())
    }

    /// Puts the readings that are due into the spool; in a flood, as many as a report holds.
    fn measure(&mut self, command: &Command) -> anyhow::Result<()> {
        let now = Instant::now();
        let mut due = 0;
        if command.readings_per_minute == 0 {
            self.readings_due = None;
        } else if self.readings_due.is_none() {
            // A site's agents were not started in one second, and do not measure in one.
            self.readings_due = Some(now + MINUTE.mul_f64(self.place as f64 * GOLDEN % 1.0));
        } else if let Some(at) = self.readings_due.filter(|at| *at <= now) {
            due = usize::try_from(command.readings_per_minute)?;
            self.readings_due = Some(at + MINUTE);
        }
        if command.flood {
            due = due.max(MAX_ITEMS.saturating_sub(self.spool.len()));
        }
        for _ in 0..due {
            let body = reading(&self.blade.serial, self.options.gpus, self.measured)?;
            self.measured += 1;
            self.say(body, command);
        }
        Ok(())
    }

    fn begin(&mut self, order: BurnInOrder) {
        let script = &self.blade.script;
        let end = script.get(self.runs).or(script.last()).copied().unwrap_or(End::Pass);
        self.runs += 1;
        self.last_run = Some(order.run);
        let until = Instant::now() + self.options.run_time;
        self.run = Some(Going { order, started_ms: now_ms(), until, end });
    }

    async fn deliver(&self, client: &mut Client, run: &Going) -> anyhow::Result<()> {
        let result = report::result(&Run {
            serial: &self.blade.serial,
            instance: &self.instance,
            key: &self.key,
            order: &run.order,
            end: run.end,
            gpus: self.options.gpus,
            sku: &self.options.sku,
            started_ms: run.started_ms,
        })?;
        let packed = zstd::encode_all(serde_json::to_vec(&result)?.as_slice(), 1)?;
        let path = format!("/v1/runs/{}/result", run.order.run);
        let (status, body) = client.call(Method::PUT, &path, packed, true).await?;
        if status.is_client_error() && status != StatusCode::TOO_MANY_REQUESTS {
            Stats::add(&self.stats.refused, 1);
            eprintln!(
                "{}: result of run {}: {status} {}",
                self.blade.serial,
                run.order.run,
                String::from_utf8_lossy(&body)
            );
            return Ok(());
        }
        anyhow::ensure!(status.is_success(), "result: {status}");
        Stats::add(&self.stats.results, 1);
        Ok(())
    }
}
