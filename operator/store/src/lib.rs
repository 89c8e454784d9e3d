//! The site's books: blades and their phases, runs and verdicts, evidence, cases, identities; in SQLite or PostgreSQL.
//!
//! The store has no clock: times are milliseconds since the Unix epoch, and come in as arguments. Every call is one
//! transaction unless it says otherwise: it happens as a whole or not at all. What the rules of a site forbid, a second
//! verdict for a run, a second run of a busy blade, the same evidence twice, the schema itself refuses.

mod aside;
mod audit;
mod backup;
mod blades;
mod cases;
mod db;
mod each;
mod error;
mod evidence;
mod faults;
mod history;
mod identity;
mod items;
mod restore;
mod results;
mod retain;
mod runs;
mod schema;
mod site;
mod sql;
mod terms;
mod transitions;
mod writes;

pub use aside::aside;
pub use audit::{AuditRow, UnexpectedRow};
pub use backup::Backup;
pub use blades::{ExpectedBlade, UpsertOutcome};
pub use cases::NewCase;
pub use db::{Store, StoreOptions};
pub use each::all_or_each;
pub use error::StoreError;
pub use evidence::{NewReport, NotStored, Stored};
pub use history::{BladeHistory, PastCase, PlaceRow, TransitionRow, VerdictRow};
pub use identity::{AgentStats, BootSeen, Identity, Join, NewToken, Seen, TokenUse};
pub use items::{EvidenceKind, EvidenceRow};
pub use restore::restore;
pub use results::{ResultStored, RunResultRow, StoredReport};
pub use retain::{RetainPolicy, Retained};
pub use runs::{CohortRow, NewRun, RunEndState, RunRow, RunState};
pub use site::{AgentRow, BladeRow, CaseRow, FaultRow, SiteRows};
pub use terms::RunTerms;
pub use transitions::{NewTransition, Stale};
