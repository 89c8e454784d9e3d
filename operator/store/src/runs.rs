//! Runs: ordered, picked up, heard of, ended; their results and verdicts.

use std::collections::{HashMap, HashSet};

use sqlx::AnyConnection;
use whetstone_model::action::Action;
use whetstone_model::ids::{RunId, Serial};
use whetstone_model::lifecycle::Phase;
use whetstone_model::verdict::Outcome;
use whetstone_model::wire::{BurnInOrder, Order, RunProgress};

use crate::db::Store;
use crate::error::StoreError;
use crate::faults::last_heard;
use crate::sql::{CHUNK, LINE, WORD, clean, col, sql, word};
use crate::transitions::{NewTransition, Stale, apply};

/// A run as the planner sees it.
#[derive(Debug, Clone, PartialEq)]
pub struct RunRow {
    pub run: RunId,
    pub suite: String,
    pub state: RunState,
    pub created_ms: i64,
    pub started_ms: Option<i64>,
    /// When its agent last spoke of it.
    pub heard_ms: Option<i64>,
    pub ended_ms: Option<i64>,
    pub budget_ms: i64,
    pub cohort: Option<CohortRow>,
    /// One line: `gemm-bf16 3/9 41 %`.
    pub progress: String,
}

/// How far a run is.
#[derive(Debug, Clone, PartialEq)]
pub enum RunState {
    /// The agent has not confirmed it.
    Ordered,
    Running,
    Finished {
        outcome: Outcome,
        code: String,
        why: String,
        action: Action,
    },
    Lost {
        why: String,
    },
    Cancelled {
        why: String,
    },
}

/// What comparison with the cohort said of a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CohortRow {
    pub outcome: Outcome,
    pub why: String,
    pub at_ms: i64,
}

/// A run to be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewRun {
    pub suite_name: String,
    /// TOML, as the agent gets it.
    pub suite_text: String,
    /// Sum of the tests' budgets, ms.
    pub budget_ms: i64,
    /// Why the blade goes to `BurningIn`.
    pub why: String,
    pub seed: u64,
    /// SKU profile to hold the blade against.
    pub sku: Option<String>,
}

/// A run that is over for us.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RunEndState {
    /// Nothing was heard of it for too long. Counts as an inconclusive try.
    Lost { why: String },
    /// Taken back. Counts for nothing.
    Cancelled { why: String },
}

impl Store {
    /// Makes runs and moves their blades to `BurningIn` with their numbers, each from the sequence that it was decided for,
    /// all in one transaction. Answers come in the order of `runs`: the run and the new sequence; a stale one does not stop
    /// the others.
    ///
    /// A run is made after what it has to answer, the blade's faults and its doubt, even if the operator's clock was set back
    /// since they came: else it could prove nothing until the clock catches up.
    pub async fn start_runs(
        &self,
        runs: &[(Serial, i64, NewRun)],
        at_ms: i64,
    ) -> Result<Vec<Result<(RunId, i64), Stale>>, StoreError> {
        self.within(async {
            let mut db = self.write().await?;
            let serials: Vec<&Serial> = runs.iter().map(|(serial, ..)| serial).collect();
            let mut places = self.places_for_update(&mut db, &serials).await?;
            let heard = last_heard(&mut db, &serials).await?;
            let mut active = HashMap::new();
            for chunk in serials.chunks(CHUNK) {
                let mut query =
                    sql("SELECT serial, run FROM runs WHERE state IN ('ordered', 'running') AND serial IN ");
                query.list(chunk.iter().map(|serial| serial.as_str()));
                for row in query.all(&mut db).await? {
                    active.insert(word::<Serial>(&row, 0)?, RunId(col(&row, 1)?));
                }
            }
            // One run per blade: the first that fits. What does not fit gets its answer from `apply`, which writes nothing.
            let mut fit: Vec<(&Serial, &NewRun, i64)> = Vec::new();
            let mut made: HashSet<&Serial> = HashSet::new();
            let mut steps: Vec<(usize, NewTransition)> = Vec::new();
            let mut busy = Vec::new();
            for (index, (serial, expect_sequence, run)) in runs.iter().enumerate() {
                if active.contains_key(serial) || made.contains(serial) {
                    busy.push(index);
                    continue;
                }
                let to = Phase::BurningIn { run: RunId(0) };
                if let Some(place) = places.get(serial)
                    && place.sequence == *expect_sequence
                    && place.name.may_become(to.name())
                {
                    let last = place.doubted_ms.max(heard.get(serial).copied());
                    fit.push((serial, run, at_ms.max(last.map_or(i64::MIN, |last| last.saturating_add(1)))));
                    made.insert(serial);
                }
                let (serial, why) = (serial.clone(), run.why.clone());
                let expect_sequence = *expect_sequence;
                steps.push((
                    index,
                    NewTransition { serial, expect_sequence, to, why, run: None, case: None, at_ms },
                ));
            }
            active.extend(insert_runs(&mut db, &fit).await?);
            for (_, step) in &mut steps {
                if made.contains(&step.serial)
                    && let Some(run) = active.get(&step.serial)
                {
                    step.to = Phase::BurningIn { run: *run };
                    step.run = Some(*run);
                }
            }
            let (indices, steps): (Vec<usize>, Vec<NewTransition>) = steps.into_iter().unzip();
            let moved = apply(&mut db, &steps, &mut places).await?;
            let mut answers = vec![Err(Stale::NoSuchBlade); runs.len()];
            for ((index, step), moved) in indices.into_iter().zip(&steps).zip(moved) {
                answers[index] =
                    moved.and_then(|sequence| step.run.map(|run| (run, sequence)).ok_or(Stale::NoSuchBlade));
            }
            for index in busy {
                if let Some(run) = active.get(&runs[index].0) {
                    answers[index] = Err(Stale::ActiveRun { run: *run });
                }
            }
            db.commit().await?;
            Ok(answers)
        })
        .await
    }

    /// Ends a run without a result. False if it was over already: then nothing changes.
    pub async fn end_run(&self, run: RunId, end: &RunEndState, at_ms: i64) -> Result<bool, StoreError> {
        let (state, why, counts) = match end {
            RunEndState::Lost { why } => ("lost", why, 1_i64),
            RunEndState::Cancelled { why } => ("cancelled", why, 0),
        };
        self.within(async {
            let mut db = self.write().await?;
            let ended = sql("UPDATE runs SET state = $1, end_why = $2, ended_ms = $3 \
                 WHERE run = $4 AND state IN ('ordered', 'running')")
            .bind(state)
            .bind(clean(why, LINE))
            .bind(at_ms)
            .bind(run.0)
            .run(&mut db)
            .await?;
            if ended == 0 {
                return Ok(false);
            }
            sql("UPDATE blades SET inconclusive = inconclusive + $1 \
                 WHERE serial = (SELECT serial FROM runs WHERE run = $2)")
            .bind(counts)
            .bind(run.0)
            .run(&mut db)
            .await?;
            db.commit().await?;
            Ok(true)
        })
        .await
    }

    /// Notes that agents spoke of their runs: an ordered one is running from here, and its progress is kept. A run that is
    /// over, or is another blade's, is left alone.
    pub async fn run_progress(&self, heard: &[(Serial, RunProgress)], at_ms: i64) -> Result<(), StoreError> {
        self.within(async {
            let mut db = self.write().await?;
            // The last word of each run counts; and an UPDATE must not meet a row twice.
            let last: HashMap<RunId, &(Serial, RunProgress)> =
                heard.iter().map(|heard| (heard.1.run, heard)).collect();
            let mut last: Vec<_> = last.into_values().collect();
            last.sort_by_key(|(_, progress)| progress.run);
            for chunk in last.chunks(CHUNK) {
                let mut update = sql("WITH v (run, serial, at_ms, progress) AS (VALUES ");
                update.rows(chunk, |fields, (serial, progress)| {
                    fields.put(progress.run.0).put(serial.as_str()).put(at_ms).put(line(progress));
                });
                update.push(
                    ") UPDATE runs SET state = 'running', started_ms = COALESCE(runs.started_ms, v.at_ms), \
                     heard_ms = v.at_ms, progress = v.progress FROM v \
                     WHERE runs.run = v.run AND runs.serial = v.serial AND runs.state IN ('ordered', 'running')",
                );
                update.run(&mut db).await?;
            }
            db.commit().await?;
            Ok(())
        })
        .await
    }

    /// What an agent has to do: `going_on` is the run that it says it is busy with. One that is not its active run is to
    /// be cancelled; else it gets its order, until it has taken it up.
    pub async fn current_order(
        &self,
        serial: &Serial,
        going_on: Option<RunId>,
    ) -> Result<Option<Order>, StoreError> {
        self.within(async {
            let mut db = self.read().await?;
            let row = sql("SELECT r.run, r.state, b.name, r.suite_text, r.seed, r.sku \
                 FROM runs r JOIN blades b ON b.serial = r.serial \
                 WHERE r.state IN ('ordered', 'running') AND r.serial = $1")
            .bind(serial.as_str())
            .maybe(&mut db)
            .await?;
            let active = row.as_ref().map(|row| col::<i64>(row, 0)).transpose()?.map(RunId);
            if let Some(run) = going_on {
                return Ok((active != Some(run)).then_some(Order::CancelRun { run }));
            }
            let (Some(row), Some(run)) = (row, active) else { return Ok(None) };
            if col::<&str>(&row, 1)? != "ordered" {
                return Ok(None);
            }
            Ok(Some(Order::BurnIn(BurnInOrder {
                run,
                blade: word(&row, 2)?,
                suite: col(&row, 3)?,
                seed: col::<i64>(&row, 4)?.cast_unsigned(),
                sku: col(&row, 5)?,
            })))
        })
        .await
    }

    /// What the fleet judge said of runs; a later judgement, with more runs in the cohort, replaces an earlier one.
    pub async fn store_cohort(&self, results: &[(RunId, CohortRow)]) -> Result<(), StoreError> {
        self.within(async {
            let mut db = self.write().await?;
            for (run, result) in results {
                sql("UPDATE runs SET cohort_outcome = $1, cohort_why = $2, cohort_ms = $3 \
                     WHERE run = $4 AND state = 'finished'")
                .bind(result.outcome.as_str())
                .bind(clean(&result.why, LINE))
                .bind(result.at_ms)
                .bind(run.0)
                .run(&mut db)
                .await?;
            }
            db.commit().await?;
            Ok(())
        })
        .await
    }
}

/// Makes one run for each of these blades, in their order: whose, what, and when it is made.
async fn insert_runs(
    db: &mut AnyConnection,
    runs: &[(&Serial, &NewRun, i64)],
) -> Result<HashMap<Serial, RunId>, StoreError> {
    let mut made = HashMap::with_capacity(runs.len());
    for chunk in runs.chunks(CHUNK) {
        let mut insert = sql(
            "INSERT INTO runs (serial, suite, suite_text, budget_ms, why, seed, sku, state, created_ms) VALUES ",
        );
        insert.rows(chunk, |fields, (serial, run, created_ms)| {
            fields
                .put(serial.as_str())
                .put(clean(&run.suite_name, WORD))
                .put(clean(&run.suite_text, usize::MAX));
            fields.put(run.budget_ms).put(clean(&run.why, LINE)).put(run.seed.cast_signed());
            fields.put(run.sku.as_deref().map(|sku| clean(sku, WORD))).put("ordered").put(*created_ms);
        });
        insert.push(" RETURNING serial, run");
        let rows = insert.all(db).await?;
        let mut numbers = Vec::with_capacity(rows.len());
        for row in &rows {
            let (serial, run): (Serial, i64) = (word(row, 0)?, col(row, 1)?);
            made.insert(serial.clone(), RunId(run));
            numbers.push((serial, run));
        }
        let mut update = sql("WITH v (serial, run) AS (VALUES ");
        update.rows(&numbers, |fields, (serial, run)| {
            fields.put(serial.as_str()).put(*run);
        });
        update.push(") UPDATE blades SET last_run = v.run FROM v WHERE blades.serial = v.serial");
        update.run(db).await?;
    }
    Ok(made)
}

fn line(progress: &RunProgress) -> String {
    let done = if progress.done.is_finite() { progress.done.clamp(0.0, 1.0) } else { 0.0 };
    let percent = (done * 100.0).round();
    let test = clean(&progress.test, WORD);
    let mut line = format!("{test} {}/{} {percent} %", progress.number, progress.of);
    if !progress.doing.is_empty() {
        line.push_str(", ");
        line.push_str(&clean(&progress.doing, WORD));
    }
    line
}
