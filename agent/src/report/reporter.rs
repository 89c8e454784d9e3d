//! The agent's conversation with the operator: joins, renews, reports, takes orders. One thread, one call at a time.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use whetstone_model::ids::Serial;
use whetstone_model::wire::{Item, MAX_ITEMS, ReportAnswer, ReportRequest, error_code};

use super::client::{CallError, Client, MAX_WAIT, OperatorUrl};
use super::identity::{self, Identity, IdentityError, Life, Token};
use super::log::{self, Lasting, Level};
use super::pace::{MIN_GAP, Paced};
use super::recorder::SAY_AGAIN;
use super::runs::Runs;
use super::shared::{Shared, lock};
use super::state::StateDir;
use super::usage;
use crate::probe::now_ms;

/// JSON of a report's items at most; the rest of `MAX_BODY` is for facts, progress and escapes.
const MAX_ITEM_BYTES: usize = 900 << 10;
/// The longest sleep: what is not signalled (a token file) is seen this soon.
const TICK: Duration = Duration::from_secs(1);
/// Facts that the operator does not take are sent again when they change, or so much later: it may have been updated.
const REFUSED_FACTS_EVERY: Duration = Duration::from_secs(3600);
/// While the operator is replaced by a newer one it may be older than this agent for so long.
const OLDER_FOR: Duration = Duration::from_secs(60);
/// A token that was refused is tried again this often: it may have been issued later than it was put here.
const SAME_TOKEN_EVERY: Duration = Duration::from_secs(60);

/// What the reporter needs to know.
#[derive(Clone)]
pub(super) struct Settings {
    pub operator: OperatorUrl,
    /// CA of the command line, PEM.
    pub ca: String,
    pub token_file: PathBuf,
    pub serial: Serial,
    /// The serial came from the firmware.
    pub of_firmware: bool,
    /// Of the kernel that runs, where it says one.
    pub boot_id: Option<String>,
    pub report_interval: Duration,
    /// Public key that signs results, hex.
    pub report_key: String,
}

pub(super) struct Reporter<'a> {
    settings: Settings,
    shared: Arc<Shared>,
    state: Arc<StateDir>,
    runs: &'a Runs,
    identity: Option<Identity>,
    /// How much the operator's clock is ahead of this one, milliseconds.
    ahead_ms: i64,
    /// This agent's part of the jitter of renewals.
    early: f64,
    /// The operator said that only a new token helps.
    token_wanted: bool,
    /// The operator said that the certificate has run out, whatever this clock says.
    renewal_wanted: bool,
    refused_token: Option<(String, Instant)>,
    exchange: Paced,
    reports: Paced,
    joins: Lasting,
    trouble: Lasting,
    last_report: Option<Instant>,
    facts_sent: u64,
    /// The version of the facts that the operator did not take, and when.
    facts_refused: Option<(u64, Instant)>,
    /// The operator does not know all fields of a report: they are left out until then.
    older_until: Option<Instant>,
    /// What was known to be stored when the operator last asked to say what stands again.
    asked_again: Option<u64>,
    /// Items of the next report at most: fewer while a bad one is looked for.
    limit: usize,
}

impl<'a> Reporter<'a> {
    pub fn new(
        settings: Settings,
        shared: Arc<Shared>,
        state: Arc<StateDir>,
        runs: &'a Runs,
        identity: Option<Identity>,
    ) -> Reporter<'a> {
        let mut reporter = Reporter {
            settings,
            shared,
            state,
            runs,
            identity: None,
            ahead_ms: 0,
            early: rand::random(),
            token_wanted: false,
            renewal_wanted: false,
            refused_token: None,
            exchange: Paced::default(),
            reports: Paced::default(),
            joins: Lasting::default(),
            trouble: Lasting::default(),
            last_report: None,
            facts_sent: 0,
            facts_refused: None,
            older_until: None,
            asked_again: None,
            limit: MAX_ITEMS,
        };
        if let Some(identity) = identity {
            reporter.take_identity(identity);
        }
        reporter
    }

    /// Goes on until the agent is to stop.
    pub fn run(&mut self) {
        while !self.shared.stopping() {
            self.keep_identity();
            if self.until_report().is_zero() {
                self.report();
            }
            let exchange = self.exchange.left().unwrap_or(TICK);
            let wait = self.until_report().min(exchange).min(TICK);
            self.shared.rest(wait.max(Duration::from_millis(10)));
        }
    }

    /// What came last, for an operator that is there.
    pub fn last_words(&mut self) {
        self.shared.sync();
        if !self.reports.is_failing() {
            self.report();
        }
    }

    fn until_report(&self) -> Duration {
        self.reports.wait(self.shared.is_urgent(), self.last_report)
    }

    /// Joins or renews where that is due.
    fn keep_identity(&mut self) {
        let life = self.identity.as_ref().map(|identity| identity.life(now_ms(), self.ahead_ms, self.early));
        match life {
            Some(Life::Good) if !self.token_wanted && !self.renewal_wanted => {}
            // The operator takes one that has just run out for a renewal; if not, it says so and a token is asked for.
            Some(_) if !self.token_wanted => self.renew(),
            _ => self.join(life),
        }
    }

    fn renew(&mut self) {
        if !self.exchange.is_due() {
            return;
        }
        let (Some(client), Some(old)) = (lock(&self.shared.client).clone(), self.identity.as_ref()) else {
            return;
        };
        match identity::renew(&self.state, &client, old) {
            Ok(identity) => {
                self.joins.well("certificate can be renewed again");
                log::info("certificate renewed", &[("blade", &identity.blade)]);
                self.exchange.well(Duration::ZERO);
                self.renewal_wanted = false;
                self.take_identity(identity);
            }
            Err(error) => {
                self.exchange.failed(error.retry_after());
                if no_longer_ours(&error) {
                    self.token_wanted = true;
                }
                // While it is tried again nobody has to act yet.
                self.identity_failed("certificate cannot be renewed yet", Level::Warn, &error);
            }
        }
    }

    fn join(&mut self, life: Option<Life>) {
        if !self.exchange.is_due() {
            return;
        }
        let why = match life {
            None => "no certificate yet",
            Some(Life::Expired) => "certificate has expired",
            Some(_) => "certificate is not taken any more",
        };
        let path = self.settings.token_file.display().to_string();
        let ask = |joins: &Lasting, more: &str| {
            let what = "a new join token is needed: put it into the token file";
            joins.failed(
                Level::Error,
                what,
                &[("file", &path), ("serial", &self.settings.serial)],
                &format!("{why}{more}"),
            );
        };
        let token = match Token::read(&self.settings.token_file) {
            Ok(Some(token)) => token,
            Ok(None) => {
                ask(&self.joins, ", and no token");
                return self.exchange.well(TICK);
            }
            Err(error) => {
                ask(&self.joins, &format!(", and {error}"));
                return self.exchange.well(TICK);
            }
        };
        if self.identity.as_ref().is_some_and(|old| old.used_token.as_ref() == Some(&token.sha256)) {
            ask(&self.joins, ", and the token was used");
            return self.exchange.well(TICK);
        }
        let refused = self.refused_token.as_ref().filter(|(sha256, _)| *sha256 == token.sha256);
        if refused.is_some_and(|(_, at)| at.elapsed() < SAME_TOKEN_EVERY) {
            return self.exchange.well(TICK);
        }
        // The facts come with the first look, within seconds.
        let Some((_, facts)) = self.shared.facts() else { return };
        let client = match Client::new(&self.settings.operator, &[&self.settings.ca], None) {
            Ok(client) => client,
            Err(error) => return self.identity_failed("cannot join", Level::Error, &error.into()),
        };
        let Settings { report_key: key, serial, of_firmware, .. } = self.settings.clone();
        match identity::join(&self.state, &client, &serial, of_firmware, &token, key, facts) {
            Ok(identity) => {
                self.joins.well("joined at last");
                log::info("joined", &[("blade", &identity.blade), ("serial", &identity.serial)]);
                self.shared.note(format!("joined as {}", identity.blade));
                self.exchange.well(Duration::ZERO);
                self.reports = Paced::default();
                (self.token_wanted, self.renewal_wanted, self.refused_token) = (false, false, None);
                self.take_identity(identity);
                match std::fs::remove_file(&self.settings.token_file) {
                    Ok(()) => {}
                    // A mounted secret; its hash is kept, and it is not used again.
                    Err(error) => log::info("token file stays", &[("file", &path), ("why", &error)]),
                }
            }
            Err(error) => {
                let person = matches!(
                    error.code(),
                    Some(error_code::TOKEN_REFUSED | error_code::IDENTITY_CONFLICT | error_code::WRONG_BLADE)
                );
                if person {
                    self.refused_token = Some((token.sha256, Instant::now()));
                }
                self.exchange.failed(error.retry_after());
                let local = matches!(error, IdentityError::State(_) | IdentityError::Key(_));
                let level = if person || local { Level::Error } else { Level::Warn };
                self.identity_failed("cannot join", level, &error);
            }
        }
    }

    fn identity_failed(&self, what: &str, level: Level, error: &IdentityError) {
        let category = error.category();
        let operator = self.settings.operator.to_string();
        self.joins.failed(
            level,
            what,
            &[("operator", &operator), ("category", &category)],
            &error.to_string(),
        );
    }

    fn take_identity(&mut self, identity: Identity) {
        match identity.client(&self.settings.operator, &self.settings.ca) {
            Ok(client) => *lock(&self.shared.client) = Some(client),
            Err(error) => {
                log::error("the certificate that is kept cannot be used", &[("why", &error)]);
                self.token_wanted = true;
            }
        }
        lock(&self.shared.counts).certificate_ends_ms = Some(identity.not_after_ms - self.ahead_ms);
        self.identity = Some(identity);
    }

    fn report(&mut self) {
        let Some(client) = lock(&self.shared.client).clone() else {
            return self.reports.well(TICK);
        };
        self.shared.take_urgent();
        self.runs.tidy();
        let (request, facts_version) = self.request();
        self.last_report = Some(Instant::now());
        match client.post::<ReportAnswer>("/v1/report", &request) {
            Ok(answer) => self.answered(&request, facts_version, answer),
            Err(error) => self.not_answered(&request, facts_version, &error),
        }
    }

    fn request(&self) -> (ReportRequest, Option<u64>) {
        let (items, status, stream, told) = {
            let mut spool = self.shared.spool();
            (spool.batch(self.limit, MAX_ITEM_BYTES), spool.status(), spool.stream(), spool.told())
        };
        // A sign of life is worth sending without them.
        let items = items.unwrap_or_else(|error| {
            log::error("spool cannot be read", &[("why", &error)]);
            Vec::new()
        });
        let refused = self.facts_refused.map(|(version, at)| (version, at.elapsed()));
        let facts = self.shared.facts().filter(|(version, _)| facts_due(*version, self.facts_sent, refused));
        let (facts_version, facts) = facts.unzip();
        let older = self.older_until.is_some_and(|until| Instant::now() < until);
        let request = ReportRequest {
            serial: self.settings.serial.clone(),
            instance: self.state.instance().to_owned(),
            boot_id: self.settings.boot_id.clone().filter(|_| !older),
            now_ms: now_ms(),
            stream,
            items,
            acked: Some(told).filter(|_| !older),
            dropped: status.dropped,
            spooled: status.items,
            facts,
            run: lock(&self.shared.progress).clone(),
            usage: usage::now(self.shared.started),
        };
        (request, facts_version)
    }

    fn answered(&mut self, request: &ReportRequest, facts_version: Option<u64>, answer: ReportAnswer) {
        self.shared.count_report("ok");
        self.trouble.well("operator takes reports again");
        (self.token_wanted, self.renewal_wanted) = (false, false);
        self.ahead_ms = answer.now_ms.saturating_sub(now_ms());
        if let Some(identity) = &self.identity {
            lock(&self.shared.counts).certificate_ends_ms = Some(identity.not_after_ms - self.ahead_ms);
        }
        // A version of zero is none; versions begin at 1.
        self.facts_sent = facts_version.unwrap_or(self.facts_sent);
        if answer.say_again && self.asked_again != request.acked {
            self.say_again(request.acked);
        }
        let last = request.items.last().map_or(0, |item| item.seq);
        // No more is forgotten than was sent, whatever the answer says.
        let acked = answer.acked.min(last);
        let stored = request.items.first().is_some_and(|first| acked >= first.seq);
        if stored {
            self.limit = (self.limit * 2).min(MAX_ITEMS);
            let forgot = self.shared.spool().ack(acked);
            if let Err(error) = forgot {
                log::warn("spool", &[("why", &error)]);
            }
        }
        if let (Some(order), Some(identity)) = (answer.order, &self.identity) {
            self.runs.take(order, &identity.blade);
        }
        let mut wait = match answer.next_report_ms {
            0 => self.settings.report_interval,
            wanted => Duration::from_millis(wanted),
        };
        // A backlog goes on without waiting for the pace of a quiet blade.
        if stored && request.spooled > request.items.len() as u64 {
            wait = wait.min(MIN_GAP);
        }
        self.reports.well(wait.clamp(MIN_GAP, MAX_WAIT));
    }

    /// The operator knew less than it had `told` this agent to have. That it asks is on disk before its answer is taken for heard:
    /// it does not ask for ever.
    fn say_again(&mut self, told: Option<u64>) {
        log::warn("the operator does not know all that it had: what stands is said again", &[]);
        self.asked_again = told;
        self.facts_sent = 0;
        if let Err(error) = self.state.save(SAY_AGAIN, &true, 0o644) {
            log::warn("a restart would not say it again", &[("why", &error)]);
        }
        self.shared.ask_again();
    }

    fn not_answered(&mut self, request: &ReportRequest, facts_version: Option<u64>, error: &CallError) {
        self.shared.count_report(error.category());
        self.reports.failed(error.retry_after().unwrap_or_default());
        let operator = self.settings.operator.to_string();
        let fields: [(&str, &dyn std::fmt::Display); 2] =
            [("operator", &operator), ("category", &error.category())];
        let code = error.code().unwrap_or_default();
        let revoked = code == error_code::REVOKED;
        // Reports go on with the old certificate: whoever refused it may have been wrong.
        self.token_wanted |= revoked;
        self.renewal_wanted |=
            code == error_code::EXPIRED || matches!(error, CallError::CertificateRefused(_));
        if error.is_bad_request() {
            return self.bad_request(request, facts_version, error);
        }
        let person = revoked
            || matches!(code, error_code::IDENTITY_CONFLICT | error_code::WRONG_BLADE)
            || matches!(error, CallError::Untrusted(..));
        let level = if person { Level::Error } else { Level::Warn };
        self.trouble.failed(
            level,
            "report not delivered; evidence waits in the spool",
            &fields,
            &error.to_string(),
        );
    }

    /// The operator cannot understand it. Facts are left out first, then the items are halved until the bad one
    /// stands alone; that one is given up, so that the rest gets through.
    fn bad_request(&mut self, request: &ReportRequest, facts_version: Option<u64>, error: &CallError) {
        self.reports.well(MIN_GAP);
        if request.acked.is_some() && error.is_unknown_field() {
            self.older_until = Some(Instant::now() + OLDER_FOR);
            let what = "the operator is older than this agent: what it does not know is left out";
            return self.trouble.failed(Level::Warn, what, &[], &error.to_string());
        }
        if let Some(version) = facts_version {
            self.facts_refused = Some((version, Instant::now()));
            return self.trouble.failed(Level::Error, "report with facts refused", &[], &error.to_string());
        }
        match request.items.as_slice() {
            [] => {
                self.reports.failed(Duration::from_secs(10));
                self.trouble.failed(Level::Error, "report refused", &[], &error.to_string());
            }
            [item] => {
                give_up(item, error);
                // It may have been this all the time.
                self.facts_refused = None;
                let forgot = self.shared.spool().give_up(item.seq);
                if let Err(error) = forgot {
                    log::warn("spool", &[("why", &error)]);
                }
            }
            items => self.limit = items.len() / 2,
        }
    }
}

/// Whether facts of this version are to be sent: not those that are known, nor for a while those that were refused.
fn facts_due(version: u64, sent: u64, refused: Option<(u64, Duration)>) -> bool {
    version != sent && refused.is_none_or(|(refused, ago)| refused != version || ago >= REFUSED_FACTS_EVERY)
}

/// Trying again with this certificate is no use.
fn no_longer_ours(error: &IdentityError) -> bool {
    let refused = matches!(error, IdentityError::Call(CallError::CertificateRefused(_)));
    let code = error.code();
    refused || matches!(code, Some(error_code::EXPIRED | error_code::REVOKED | error_code::UNAUTHENTICATED))
}

fn give_up(item: &Item, error: &CallError) {
    let body = serde_json::to_string(&item.body).unwrap_or_default();
    let body = &body[..body.floor_char_boundary(500)];
    log::error("the operator does not take an item; given up", &[("item", &body), ("why", error)]);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refused_facts_come_again_when_they_change_or_after_a_long_while() {
        let minute = Duration::from_secs(60);
        assert!(facts_due(1, 0, None));
        assert!(!facts_due(1, 1, None), "they are known");
        assert!(!facts_due(1, 0, Some((1, minute))), "they were refused a minute ago");
        assert!(facts_due(2, 0, Some((1, minute))), "these are others");
        assert!(facts_due(1, 0, Some((1, 60 * minute))), "the operator may be another one by now");
    }
}
