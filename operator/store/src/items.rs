//! Evidence as it is read back.

use whetstone_model::ids::Serial;
use whetstone_model::wire::ItemBody;

use crate::db::Store;
use crate::error::StoreError;
use crate::sql::{col, from_json, sql};

/// A piece of evidence as it was stored.
#[derive(Debug, Clone, PartialEq)]
pub struct EvidenceRow {
    pub stream: String,
    pub seq: i64,
    /// By the blade's clock.
    pub at_ms: i64,
    /// By the operator's.
    pub received_ms: i64,
    pub kind: EvidenceKind,
    /// Code of the finding, or name of the metric.
    pub code: String,
    pub device: Option<String>,
    pub value: Option<f64>,
    pub unit: Option<String>,
    /// All of it; `None` for a reading, which the other fields hold.
    pub body: Option<ItemBody>,
}

/// What sort of thing a piece of evidence is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum EvidenceKind {
    Appeared,
    Cleared,
    Kernel,
    Reading,
    Note,
}

impl EvidenceKind {
    /// All of them, findings first.
    const ALL: [EvidenceKind; 5] = [
        EvidenceKind::Appeared,
        EvidenceKind::Cleared,
        EvidenceKind::Kernel,
        EvidenceKind::Reading,
        EvidenceKind::Note,
    ];

    /// As it is stored; findings have the lowest.
    pub(crate) const fn number(self) -> i64 {
        match self {
            EvidenceKind::Appeared => 1,
            EvidenceKind::Cleared => 2,
            EvidenceKind::Kernel => 3,
            EvidenceKind::Reading => 4,
            EvidenceKind::Note => 5,
        }
    }

    /// The sort of an item.
    pub fn of(body: &ItemBody) -> Self {
        match body {
            ItemBody::Appeared { .. } => EvidenceKind::Appeared,
            ItemBody::Cleared { .. } => EvidenceKind::Cleared,
            ItemBody::Kernel { .. } => EvidenceKind::Kernel,
            ItemBody::Reading { .. } => EvidenceKind::Reading,
            ItemBody::Note { .. } => EvidenceKind::Note,
        }
    }

    /// The word for labels and tables.
    pub fn as_str(self) -> &'static str {
        match self {
            EvidenceKind::Appeared => "appeared",
            EvidenceKind::Cleared => "cleared",
            EvidenceKind::Kernel => "kernel",
            EvidenceKind::Reading => "reading",
            EvidenceKind::Note => "note",
        }
    }
}

impl Store {
    /// Evidence of a blade, newest first; `findings` leaves out readings and notes.
    pub async fn evidence_of(
        &self,
        serial: &Serial,
        findings: bool,
        limit: u32,
    ) -> Result<Vec<EvidenceRow>, StoreError> {
        self.within(async {
            let mut db = self.read().await?;
            let rows = sql(
                "SELECT s.name, e.seq, e.at_ms, e.received_ms, e.kind, e.code, e.device, e.value, e.unit, e.body \
                 FROM evidence e JOIN streams s ON s.id = e.stream WHERE s.serial = $1 AND e.kind <= $2 \
                 ORDER BY e.stream DESC, e.seq DESC LIMIT $3",
            )
            .bind(serial.as_str())
            .bind(if findings { EvidenceKind::Kernel.number() } else { EvidenceKind::Note.number() })
            .bind(i64::from(limit))
            .all(&mut db)
            .await?;
            rows.iter()
                .map(|row| {
                    let number: i64 = col(row, 4)?;
                    let kind = EvidenceKind::ALL
                        .into_iter()
                        .find(|kind| kind.number() == number)
                        .ok_or_else(|| StoreError::Corrupt(format!("{number} is no kind of evidence")))?;
                    Ok(EvidenceRow {
                        stream: col(row, 0)?,
                        seq: col(row, 1)?,
                        at_ms: col(row, 2)?,
                        received_ms: col(row, 3)?,
                        kind,
                        code: col(row, 5)?,
                        device: crate::site::device(row, 6)?,
                        value: col(row, 7)?,
                        unit: col(row, 8)?,
                        body: col::<Option<&str>>(row, 9)?.map(from_json).transpose()?,
                    })
                })
                .collect()
        })
        .await
    }
}
