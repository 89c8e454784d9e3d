//! Phases: each step written once, by whoever decided on what still holds.

use std::collections::{BTreeMap, HashMap};

use sqlx::AnyConnection;
use whetstone_model::ids::{CaseId, RunId, Serial};
use whetstone_model::lifecycle::{Phase, PhaseName};

use crate::db::Store;
use crate::error::StoreError;
use crate::sql::{CHUNK, LINE, clean, col, from_json, json, sql, word};

/// A blade moves on to another phase.
#[derive(Debug, Clone, PartialEq)]
pub struct NewTransition {
    pub serial: Serial,
    /// The sequence that the decision was made for.
    pub expect_sequence: i64,
    pub to: Phase,
    /// One line for a person.
    pub why: String,
    pub run: Option<RunId>,
    pub case: Option<CaseId>,
    pub at_ms: i64,
}

/// Why a transition was not written. Nothing of it has been.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Stale {
    /// Somebody else moved the blade since the decision was made.
    #[error("blade has moved on to sequence {sequence}")]
    Moved { sequence: i64 },
    #[error("no such blade")]
    NoSuchBlade,
    /// The lifecycle knows no such step.
    #[error("no way from {from} to {to}")]
    Illegal { from: PhaseName, to: PhaseName },
    /// A run goes on already.
    #[error("run {run} goes on")]
    ActiveRun { run: RunId },
}

/// What a transition has to know about the blade, read under lock.
pub(crate) struct Place {
    pub(crate) sequence: i64,
    pub(crate) phase: String,
    pub(crate) name: PhaseName,
    pub(crate) passed_ms: Option<i64>,
    pub(crate) doubted_ms: Option<i64>,
}

pub(crate) fn phase_name(text: &str) -> Result<PhaseName, StoreError> {
    PhaseName::ALL
        .into_iter()
        .find(|name| name.as_str() == text)
        .ok_or_else(|| StoreError::Corrupt(format!("{text:?} is no phase")))
}

impl Store {
    /// Moves blades on, all in one transaction, each only if nobody else has moved it since. Answers come in the order of
    /// `transitions`: the new sequence, or why it was not written; one that is stale does not stop the others.
    ///
    /// `passed_ms` is set on the way from `BurningIn` to `Ready`, `doubted_ms` on entering `Quarantined` or `Repairing`;
    /// both keep the order of the events even if the operator's clock was set back between them.
    pub async fn transition(
        &self,
        transitions: &[NewTransition],
    ) -> Result<Vec<Result<i64, Stale>>, StoreError> {
        self.within(async {
            let mut db = self.write().await?;
            let serials: Vec<&Serial> = transitions.iter().map(|transition| &transition.serial).collect();
            let mut places = self.places_for_update(&mut db, &serials).await?;
            let answers = apply(&mut db, transitions, &mut places).await?;
            db.commit().await?;
            Ok(answers)
        })
        .await
    }

    pub(crate) async fn places_for_update(
        &self,
        db: &mut AnyConnection,
        serials: &[&Serial],
    ) -> Result<HashMap<Serial, Place>, StoreError> {
        let mut places = HashMap::with_capacity(serials.len());
        // In order, as all who lock blades do: two writers cannot wait for each other.
        let mut serials = serials.to_vec();
        serials.sort();
        for chunk in serials.chunks(CHUNK) {
            let mut query = sql("SELECT serial, sequence, phase, phase_name, passed_ms, doubted_ms \
                 FROM blades WHERE serial IN ");
            query.list(chunk.iter().map(|serial| serial.as_str()));
            query.push(" ORDER BY serial").push(self.for_update());
            for row in query.all(db).await? {
                let place = Place {
                    sequence: col(&row, 1)?,
                    phase: col(&row, 2)?,
                    name: phase_name(col(&row, 3)?)?,
                    passed_ms: col(&row, 4)?,
                    doubted_ms: col(&row, 5)?,
                };
                places.insert(word(&row, 0)?, place);
            }
        }
        Ok(places)
    }

    /// Records which wishes for a burn-in were acted on: (serial, value of the wish).
    pub async fn set_retested(&self, wishes: &[(Serial, i64)]) -> Result<(), StoreError> {
        self.within(async {
            let mut db = self.write().await?;
            for (serial, wish) in wishes {
                sql("UPDATE blades SET retested = $1 WHERE serial = $2 AND retested < $3")
                    .bind(*wish)
                    .bind(serial.as_str())
                    .bind(*wish)
                    .run(&mut db)
                    .await?;
            }
            db.commit().await?;
            Ok(())
        })
        .await
    }
}

/// Writes the transitions that still hold.
pub(crate) async fn apply(
    db: &mut AnyConnection,
    transitions: &[NewTransition],
    places: &mut HashMap<Serial, Place>,
) -> Result<Vec<Result<i64, Stale>>, StoreError> {
    let mut answers = Vec::with_capacity(transitions.len());
    let mut log = Vec::new();
    // The last transition of each blade says where it is in the end.
    let mut last: BTreeMap<&Serial, &NewTransition> = BTreeMap::new();
    for transition in transitions {
        let Some(place) = places.get_mut(&transition.serial) else {
            answers.push(Err(Stale::NoSuchBlade));
            continue;
        };
        let to = transition.to.name();
        if place.sequence != transition.expect_sequence {
            answers.push(Err(Stale::Moved { sequence: place.sequence }));
        } else if !place.name.may_become(to) {
            answers.push(Err(Stale::Illegal { from: place.name, to }));
        } else {
            let text = json(&transition.to)?;
            let from = std::mem::replace(&mut place.phase, text.clone());
            match (place.name, to) {
                (PhaseName::BurningIn, PhaseName::Ready) => {
                    let after = place.doubted_ms.map_or(i64::MIN, |doubted| doubted.saturating_add(1));
                    place.passed_ms = Some(transition.at_ms.max(after));
                }
                (_, PhaseName::Quarantined | PhaseName::Repairing) => {
                    let passed = place.passed_ms.unwrap_or(i64::MIN);
                    place.doubted_ms = Some(transition.at_ms.max(passed));
                }
                _ => {}
            }
            place.name = to;
            place.sequence += 1;
            answers.push(Ok(place.sequence));
            log.push((transition, place.sequence, from, text));
            last.insert(&transition.serial, transition);
        }
    }
    for chunk in log.chunks(CHUNK) {
        let mut insert = sql("INSERT INTO transitions \
             (serial, sequence, from_phase, to_phase, to_name, why, run, case_id, at_ms) VALUES ");
        insert.rows(chunk, |fields, (transition, sequence, from, to)| {
            fields.put(transition.serial.as_str()).put(*sequence).put(from.as_str()).put(to.as_str());
            fields.put(transition.to.name().as_str()).put(clean(&transition.why, LINE));
            fields.put(transition.run.map(|run| run.0)).put(transition.case.map(|case| case.0));
            fields.put(transition.at_ms);
        });
        insert.run(db).await?;
    }
    let moved: Vec<_> = last
        .into_iter()
        .filter_map(|(serial, transition)| Some((serial, transition, places.get(serial)?)))
        .collect();
    for chunk in moved.chunks(CHUNK) {
        let mut update = sql(
            "WITH v (serial, phase, phase_name, why, since_ms, sequence, passed_ms, doubted_ms) AS (VALUES ",
        );
        update.rows(chunk, |fields, (serial, transition, place)| {
            fields.put(serial.as_str()).put(place.phase.as_str()).put(place.name.as_str());
            fields.put(clean(&transition.why, LINE)).put(transition.at_ms).put(place.sequence);
            fields.put(place.passed_ms).put(place.doubted_ms);
        });
        update.push(
            ") UPDATE blades SET phase = v.phase, phase_name = v.phase_name, why = v.why, since_ms = v.since_ms, \
             sequence = v.sequence, passed_ms = v.passed_ms, doubted_ms = v.doubted_ms \
             FROM v WHERE blades.serial = v.serial",
        );
        update.run(db).await?;
    }
    Ok(answers)
}

/// A phase as it is stored.
pub(crate) fn phase(text: &str) -> Result<Phase, StoreError> {
    from_json(text)
}
