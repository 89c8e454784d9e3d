//! Blades: who is expected, and the phases that they go through.

use std::collections::{BTreeSet, HashMap};

use sqlx::AnyConnection;
use whetstone_model::ids::{BladeName, DomainName, RackName, Serial, TrancheName};
use whetstone_model::lifecycle::{Phase, PhaseName};

use crate::db::Store;
use crate::error::StoreError;
use crate::sql::{CHUNK, WORD, clean, col, json, sql, word};

/// A blade as a manifest or its object describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExpectedBlade {
    pub serial: Serial,
    pub name: BladeName,
    pub tranche: Option<TrancheName>,
    pub rack: Option<RackName>,
    pub domain: Option<DomainName>,
    /// SKU profile.
    pub sku: Option<String>,
}

/// What [`Store::upsert_moving`] made of one blade.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum UpsertOutcome {
    /// Not known before: it is `Expected` now.
    New,
    /// Name, place or SKU were changed; its history follows.
    Updated,
    Same,
    /// Not changed: the serial belongs to another tranche and may not move, or comes twice in this list.
    Duplicate {
        tranche: Option<TrancheName>,
    },
    /// Not changed: another blade that is still on the site has that name.
    NameTaken {
        by: Serial,
    },
}

impl Store {
    /// Enters blades, or updates their names and places, in one transaction. Outcomes come in the order of `blades`. A
    /// blade stays in its tranche; those of `may_move`, which their tranche does not list any more, move to the tranche that
    /// does, and their history goes with them.
    pub async fn upsert_moving(
        &self,
        blades: &[ExpectedBlade],
        may_move: &BTreeSet<Serial>,
        now_ms: i64,
    ) -> Result<Vec<UpsertOutcome>, StoreError> {
        self.within(async {
            let mut db = self.write().await?;
            let mut outcomes = vec![UpsertOutcome::Same; blades.len()];
            let known = self.known_blades(&mut db, blades).await?;
            let names = name_holders(&mut db, blades).await?;
            // Serial → its place in the list: the first one counts.
            let mut first: HashMap<&Serial, usize> = HashMap::with_capacity(blades.len());
            let mut wanted = Vec::with_capacity(blades.len());
            for (index, blade) in blades.iter().enumerate() {
                if let Some(other) = first.get(&blade.serial) {
                    outcomes[index] = UpsertOutcome::Duplicate { tranche: blades[*other].tranche.clone() };
                    continue;
                }
                first.insert(&blade.serial, index);
                if let Some(old) = known.get(&blade.serial)
                    && !old.retired
                    && !may_move.contains(&blade.serial)
                    && let (Some(theirs), Some(ours)) = (&old.blade.tranche, &blade.tranche)
                    && theirs != ours
                {
                    outcomes[index] = UpsertOutcome::Duplicate { tranche: Some(theirs.clone()) };
                    continue;
                }
                wanted.push(index);
            }
            let taken = taken(blades, &wanted, &known, &names);
            let (mut new, mut updated) = (Vec::new(), Vec::new());
            for index in wanted {
                let blade = &blades[index];
                outcomes[index] = match (taken.get(&index), known.get(&blade.serial)) {
                    (Some(by), _) => UpsertOutcome::NameTaken { by: by.clone() },
                    (None, None) => {
                        new.push(blade);
                        UpsertOutcome::New
                    }
                    (None, Some(old)) if old.blade != *blade => {
                        updated.push((blade, old));
                        UpsertOutcome::Updated
                    }
                    (None, Some(_)) => UpsertOutcome::Same,
                };
            }
            insert_new(&mut db, &new, now_ms).await?;
            update_known(&mut db, &updated, now_ms).await?;
            db.commit().await?;
            Ok(outcomes)
        })
        .await
    }

    async fn known_blades(
        &self,
        db: &mut AnyConnection,
        blades: &[ExpectedBlade],
    ) -> Result<HashMap<Serial, Known>, StoreError> {
        let mut known = HashMap::new();
        let mut blades: Vec<&ExpectedBlade> = blades.iter().collect();
        blades.sort_by_key(|blade| &blade.serial);
        for chunk in blades.chunks(CHUNK) {
            let mut query =
                sql("SELECT b.serial, b.name, b.tranche, b.rack, b.domain, b.sku, b.phase_name, \
                 (SELECT MAX(number) FROM places p WHERE p.serial = b.serial) \
                 FROM blades b WHERE b.serial IN ");
            query.list(chunk.iter().map(|blade| blade.serial.as_str()));
            query.push(" ORDER BY b.serial").push(self.for_update());
            for row in query.all(db).await? {
                let blade = ExpectedBlade {
                    serial: word(&row, 0)?,
                    name: word(&row, 1)?,
                    tranche: crate::sql::maybe_word(&row, 2)?,
                    rack: crate::sql::maybe_word(&row, 3)?,
                    domain: crate::sql::maybe_word(&row, 4)?,
                    sku: col(&row, 5)?,
                };
                let retired = col::<&str>(&row, 6)? == PhaseName::Retired.as_str();
                let places = col::<Option<i64>>(&row, 7)?.unwrap_or(0);
                known.insert(blade.serial.clone(), Known { blade, retired, places });
            }
        }
        Ok(known)
    }
}

struct Known {
    blade: ExpectedBlade,
    retired: bool,
    /// Number of its latest place.
    places: i64,
}

/// Who has the names now, retired blades aside.
async fn name_holders(
    db: &mut AnyConnection,
    blades: &[ExpectedBlade],
) -> Result<HashMap<BladeName, Vec<Serial>>, StoreError> {
    let mut holders: HashMap<BladeName, Vec<Serial>> = HashMap::new();
    for chunk in blades.chunks(CHUNK) {
        let mut query = sql("SELECT name, serial FROM blades WHERE phase_name <> 'Retired' AND name IN ");
        query.list(chunk.iter().map(|blade| blade.name.as_str()));
        for row in query.all(db).await? {
            holders.entry(word(&row, 0)?).or_default().push(word(&row, 1)?);
        }
    }
    Ok(holders)
}

/// Which of `wanted`, places in the list, cannot have the name that it gives them, and whose that is. A name is its holder's
/// unless the list gives that one another, and it gets it; else it is the first one's who is listed by it.
fn taken(
    blades: &[ExpectedBlade],
    wanted: &[usize],
    known: &HashMap<Serial, Known>,
    holders: &HashMap<BladeName, Vec<Serial>>,
) -> HashMap<usize, Serial> {
    let mut taken: HashMap<usize, Serial> = HashMap::new();
    let mut listed: HashMap<&Serial, usize> = HashMap::with_capacity(wanted.len());
    let mut wants: HashMap<&BladeName, Vec<usize>> = HashMap::with_capacity(wanted.len());
    for &index in wanted {
        listed.insert(&blades[index].serial, index);
        wants.entry(&blades[index].name).or_default().push(index);
    }
    let mut open: Vec<&BladeName> = wants.keys().copied().collect();
    while let Some(name) = open.pop() {
        let keeps = |holder: &&Serial| {
            listed.get(holder).is_none_or(|at| taken.contains_key(at) || blades[*at].name == *name)
        };
        let mut whose = holders.get(name).into_iter().flatten().find(keeps);
        for &index in wants.get(name).into_iter().flatten() {
            let blade = &blades[index];
            match whose {
                Some(by) if *by != blade.serial => {
                    // It keeps its own name then, on which others may have counted.
                    if taken.insert(index, by.clone()).is_none() {
                        open.extend(known.get(&blade.serial).map(|old| &old.blade.name));
                    }
                }
                _ => whose = Some(&blade.serial),
            }
        }
    }
    taken
}

async fn insert_new(
    db: &mut AnyConnection,
    blades: &[&ExpectedBlade],
    now_ms: i64,
) -> Result<(), StoreError> {
    let phase = json(&Phase::Expected)?;
    let why = |blade: &ExpectedBlade| match &blade.tranche {
        Some(tranche) => format!("on the manifest of {tranche}"),
        None => "expected".to_owned(),
    };
    for chunk in blades.chunks(CHUNK) {
        let mut insert =
            sql("INSERT INTO blades (serial, name, tranche, rack, domain, sku, phase, phase_name, why, \
             since_ms, sequence, created_ms) VALUES ");
        insert.rows(chunk, |fields, blade| {
            fields.put(blade.serial.as_str()).put(blade.name.as_str());
            place_fields(fields, blade);
            fields.put(blade.sku.as_deref().map(|sku| clean(sku, WORD)));
            fields.put(phase.as_str()).put(PhaseName::Expected.as_str()).put(why(blade));
            fields.put(now_ms).put(1_i64).put(now_ms);
        });
        insert.run(db).await?;
        let mut insert =
            sql("INSERT INTO transitions (serial, sequence, to_phase, to_name, why, at_ms) VALUES ");
        insert.rows(chunk, |fields, blade| {
            fields.put(blade.serial.as_str()).put(1_i64).put(phase.as_str());
            fields.put(PhaseName::Expected.as_str()).put(why(blade)).put(now_ms);
        });
        insert.run(db).await?;
        let mut forget = sql("DELETE FROM unexpected WHERE serial IN ");
        forget.list(chunk.iter().map(|blade| blade.serial.as_str()));
        forget.run(db).await?;
    }
    let places: Vec<_> = blades.iter().map(|blade| (*blade, 1)).collect();
    insert_places(db, &places, now_ms).await
}

fn place_fields(fields: &mut crate::sql::Fields<'_>, blade: &ExpectedBlade) {
    fields
        .put(blade.tranche.as_ref().map(|name| name.as_str().to_owned()))
        .put(blade.rack.as_ref().map(|name| name.as_str().to_owned()))
        .put(blade.domain.as_ref().map(|name| name.as_str().to_owned()));
}

async fn insert_places(
    db: &mut AnyConnection,
    places: &[(&ExpectedBlade, i64)],
    now_ms: i64,
) -> Result<(), StoreError> {
    for chunk in places.chunks(CHUNK) {
        let mut insert =
            sql("INSERT INTO places (serial, number, name, tranche, rack, domain, from_ms) VALUES ");
        insert.rows(chunk, |fields, (blade, number)| {
            fields.put(blade.serial.as_str()).put(*number).put(blade.name.as_str());
            place_fields(fields, blade);
            fields.put(now_ms);
        });
        insert.run(db).await?;
    }
    Ok(())
}

async fn update_known(
    db: &mut AnyConnection,
    updated: &[(&ExpectedBlade, &Known)],
    now_ms: i64,
) -> Result<(), StoreError> {
    let mut moved = Vec::new();
    for (blade, old) in updated {
        sql("UPDATE blades SET name = $1, tranche = $2, rack = $3, domain = $4, sku = $5 WHERE serial = $6")
            .bind(blade.name.as_str())
            .bind(blade.tranche.as_ref().map(|name| name.as_str().to_owned()))
            .bind(blade.rack.as_ref().map(|name| name.as_str().to_owned()))
            .bind(blade.domain.as_ref().map(|name| name.as_str().to_owned()))
            .bind(blade.sku.as_deref().map(|sku| clean(sku, WORD)))
            .bind(blade.serial.as_str())
            .run(db)
            .await?;
        let place = |blade: &ExpectedBlade| {
            (blade.name.clone(), blade.tranche.clone(), blade.rack.clone(), blade.domain.clone())
        };
        if place(blade) != place(&old.blade) {
            moved.push((*blade, old.places + 1));
        }
    }
    insert_places(db, &moved, now_ms).await
}
