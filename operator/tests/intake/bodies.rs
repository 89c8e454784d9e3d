//! Bodies that are too large, too slow or none, and a database that is away.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use whetstone_model::wire::error_code::*;
use whetstone_model::wire::*;
use whetstone_operator::intake::{self, ServerLimits};

use crate::site::*;

fn still_serves(agent: &Agent) {
    agent.send(&agent.report(vec![])).ok();
}

#[test]
fn bodies_over_the_limit_are_refused_with_and_without_a_length() {
    let site = Site::start(1);
    let mut agent = site.joined("S1");
    // Said beforehand.
    agent.post_bytes("/v1/report", &vec![b' '; MAX_BODY + 1]).refused(413, BAD_REQUEST);
    // Not said: chunks without an end in sight. The server may hang up while the client still sends.
    let endless = ureq::SendBody::from_owned_reader(std::io::repeat(b' ').take(64 << 20));
    let answer = agent.http.post(format!("{}/v1/report", agent.url)).send(endless);
    if answer.is_ok() {
        Answer::of(answer).refused(413, BAD_REQUEST);
    }
    assert_eq!(site.refused("too-large"), 2.0);
    agent.take(agent.certificate.clone().unwrap());
    still_serves(&agent);
}

#[test]
fn garbage_is_refused_with_where_it_is_wrong() {
    let site = Site::start(1);
    let agent = site.joined("S1");
    let good = serde_json::to_string(&agent.report(vec![])).unwrap();
    for (bad, says) in [
        (String::new(), "EOF"),
        ("{".into(), "line 1 column 1"),
        (good.replace("\"serial\"", "\"cereal\""), "cereal"),
        (good.replace("[]", "{}"), "line 1"),
        ("\u{0}\u{1}".into(), "expected value"),
        (
            good.replace("[]", &format!("[{{\"seq\":1,\"at_ms\":1,\"text\":{}", "[".repeat(100_000))),
            "recursion limit",
        ),
    ] {
        let message = agent.post_bytes("/v1/report", bad.as_bytes()).refused(400, BAD_REQUEST);
        assert!(message.contains(says) && message.len() < 400, "{message:?} does not say {says:?}");
    }
    agent.post_bytes("/v1/report", &[0xff; 100]).refused(400, BAD_REQUEST);
    Answer::of(agent.http.get(format!("{}/nothing", agent.url)).call()).refused(404, NOT_FOUND);
    still_serves(&agent);
}

pub struct Trickle(pub u32);

impl Read for Trickle {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        // The pace is what is tested: slower than the server's patience allows.
        std::thread::sleep(Duration::from_millis(20));
        self.0 += 1;
        if self.0 > 500 {
            return Ok(0);
        }
        buffer[0] = b' ';
        Ok(1)
    }
}

#[test]
fn who_sends_slowly_is_cut_off_and_holds_up_nobody() {
    let config = intake::Config { body: Duration::from_millis(200), ..Default::default() };
    let limits = ServerLimits {
        handshake: Duration::from_millis(300),
        idle: Duration::from_millis(800),
        ..ServerLimits::default()
    };
    let site = Site::with_limits(2, config, limits);
    let (slow, other) = (site.joined("S1"), site.joined("S2"));
    let begun = Instant::now();
    let body = ureq::SendBody::from_owned_reader(Trickle(0));
    let answer = slow.http.post(format!("{}/v1/report", slow.url)).send(body);
    assert!(begun.elapsed() < Duration::from_secs(9), "it was let finish");
    if answer.is_ok() {
        assert_eq!(Answer::of(answer).status, 408);
    }
    site.until("the slow body to be counted", || site.refused("slow") == 1.0);

    // No handshake at all.
    let mut silent = TcpStream::connect(("127.0.0.1", site.port())).unwrap();
    silent.set_read_timeout(Some(PATIENCE)).unwrap();
    let _ = silent.write_all(&[0x16]);
    assert_eq!(silent.read(&mut [0; 64]).unwrap_or(0), 0, "the server spoke to somebody silent");
    site.until("the handshake to be counted", || {
        site.metric("whetstone_intake_handshakes_failed_total", &[("cause", "slow")]) == 1.0
    });
    still_serves(&other);
    // A connection with nothing to say is closed; the next request opens another.
    site.until("idle connections to end", || site.metric("whetstone_intake_connections", &[]) == 0.0);
    still_serves(&other);
}

/// Agents keep their connections; with more agents than places none of them may wait until another's is idle for a minute.
#[test]
fn more_agents_than_connections_are_all_served() {
    let limits = ServerLimits { connections: 4, ..ServerLimits::default() };
    let site = Site::with_limits(12, intake::Config::default(), limits);
    let agents: Vec<_> = (1..=12).map(|n| site.joined(&format!("S{n}"))).collect();
    for _ in 0..2 {
        agents.iter().for_each(still_serves);
    }
    assert!(site.metric("whetstone_intake_connections", &[]) <= 4.0);
}

#[test]
fn a_locked_database_is_told_with_503_and_nothing_is_lost() {
    use sqlx::Connection as _;
    let site = Site::start(1);
    let agent = site.joined("S1");
    agent.send(&agent.report(vec![])).ok();
    let path = format!("sqlite:{}", site.dir.path().join("store.db").display());
    let mut other = site.wait(sqlx::SqliteConnection::connect(&path)).unwrap();
    site.wait(sqlx::query("BEGIN IMMEDIATE").execute(&mut other)).unwrap();

    let report = agent.report(vec![appeared(1, "sdc")]);
    agent.send(&report).refused(503, UNAVAILABLE);
    let mut new = Agent::new(&site, "S1");
    new.join("wt-none").refused(503, UNAVAILABLE);
    // A sign of life needs no database now.
    agent.send(&agent.report(vec![])).ok();
    assert!(site.refused("store") >= 2.0);

    site.wait(sqlx::query("ROLLBACK").execute(&mut other)).unwrap();
    assert_eq!(agent.send(&report).json::<ReportAnswer>().acked, 1);
    let blade = site.wait(site.store.load_site()).unwrap().blades.remove(0);
    assert_eq!(blade.faults.len(), 1);
}

#[test]
fn a_full_queue_is_told_with_503() {
    use sqlx::Connection as _;
    let config = intake::Config { queue: 1, per_agent: 64, ..Default::default() };
    let site = Site::with(1, config);
    let agent = site.joined("S1");
    let path = format!("sqlite:{}", site.dir.path().join("store.db").display());
    let mut other = site.wait(sqlx::SqliteConnection::connect(&path)).unwrap();
    site.wait(sqlx::query("BEGIN IMMEDIATE").execute(&mut other)).unwrap();
    // The writer holds one, the queue another; of the rest at least one finds no place.
    let answers: Vec<u16> = std::thread::scope(|scope| {
        let send = |seq| agent.send(&agent.report(vec![note(seq, "x")]));
        let sent: Vec<_> = (1..=8).map(|seq| scope.spawn(move || send(seq).status)).collect();
        sent.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert!(answers.iter().all(|status| *status == 503), "{answers:?}");
    assert!(site.refused("queue-full") >= 1.0);
    site.wait(sqlx::query("ROLLBACK").execute(&mut other)).unwrap();
    agent.send(&agent.report(vec![note(9, "x")])).ok();
}

#[test]
fn one_blade_has_only_so_many_requests_at_once() {
    use sqlx::Connection as _;
    let config = intake::Config { per_agent: 2, ..Default::default() };
    let site = Site::with(2, config);
    let (greedy, other) = (site.joined("S1"), site.joined("S2"));
    other.send(&other.report(vec![])).ok();
    let path = format!("sqlite:{}", site.dir.path().join("store.db").display());
    let mut lock = site.wait(sqlx::SqliteConnection::connect(&path)).unwrap();
    site.wait(sqlx::query("BEGIN IMMEDIATE").execute(&mut lock)).unwrap();
    std::thread::scope(|scope| {
        let send = |seq| greedy.send(&greedy.report(vec![note(seq, "x")]));
        let sent: Vec<_> = (1..=8).map(|seq| scope.spawn(move || send(seq).status)).collect();
        site.until("a refusal", || site.refused("busy") >= 1.0);
        other.send(&other.report(vec![])).ok();
        drop(sent);
    });
    site.wait(sqlx::query("ROLLBACK").execute(&mut lock)).unwrap();
    still_serves(&greedy);
}

#[test]
fn who_shows_no_certificate_has_few_connections_and_not_for_long() {
    let limits = ServerLimits {
        strangers: 2,
        stranger_idle: Duration::from_millis(200),
        handshake: Duration::from_secs(2),
        ..ServerLimits::default()
    };
    let site = Site::with_limits(1, intake::Config::default(), limits);
    let mut agent = site.joined("S1");
    still_serves(&agent);
    // A connection without a certificate that has nothing more to say is closed; the agent's stays.
    Agent::new(&site, "S1").join("wt-none").refused(403, TOKEN_REFUSED);
    site.until("it to be closed", || site.metric("whetstone_intake_connections", &[]) == 1.0);

    let silent: Vec<_> = (0..2).map(|_| TcpStream::connect(("127.0.0.1", site.port())).unwrap()).collect();
    site.until("both to be counted", || site.metric("whetstone_intake_connections", &[]) == 3.0);
    let mut third = TcpStream::connect(("127.0.0.1", site.port())).unwrap();
    third.set_read_timeout(Some(PATIENCE)).unwrap();
    assert_eq!(third.read(&mut [0; 64]).unwrap_or(0), 0, "the server spoke to one too many");
    let crowded = || site.metric("whetstone_intake_handshakes_failed_total", &[("cause", "crowded")]);
    assert_eq!(crowded(), 1.0);
    // Who has shown its certificate is not held up by them.
    still_serves(&agent);
    drop(silent);
    site.until("their places to be free", || site.metric("whetstone_intake_connections", &[]) == 1.0);
    agent.take(agent.certificate.clone().unwrap());
    still_serves(&agent);
}
