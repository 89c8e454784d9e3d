//! Statements with numbered arguments, of fixed and of variable length, for both databases.

use sqlx::AnyConnection;
use sqlx::any::{AnyArguments, AnyRow};
use sqlx::{Any, Arguments, AssertSqlSafe, Encode, Row, Type};

use crate::error::StoreError;

/// Rows of one `VALUES` list. SQLite takes 32,766 arguments in a statement, PostgreSQL 65,535; the widest row has 20.
pub(crate) const CHUNK: usize = 500;

/// Where an argument goes: `?` in SQLite, `$n` in PostgreSQL. SQLite also knows `$n`, but looks each one up among all that
/// came before: a thousand rows then cost seconds.
const MARK: char = '\u{1}';

/// A statement that is being put together. Texts come from this crate alone; whatever comes from elsewhere is an argument.
pub(crate) struct Sql {
    text: String,
    args: AnyArguments,
    /// Fixed texts are worth a place in the statement cache. They number their arguments themselves; in others each
    /// argument stands in the text as [`MARK`].
    fixed: bool,
    failed: Option<sqlx::error::BoxDynError>,
}

impl Sql {
    pub(crate) fn new(text: &str) -> Self {
        Sql { text: text.to_owned(), args: AnyArguments::default(), fixed: true, failed: None }
    }

    pub(crate) fn push(&mut self, text: &str) -> &mut Self {
        self.text.push_str(text);
        self
    }

    /// An argument for the next `$n` that stands in the text already.
    pub(crate) fn bind<'t, T: Encode<'t, Any> + Type<Any>>(mut self, value: T) -> Self {
        self.add(value);
        self
    }

    fn add<'t, T: Encode<'t, Any> + Type<Any>>(&mut self, value: T) {
        if let Err(error) = self.args.add(value) {
            self.failed.get_or_insert(error);
        }
    }

    /// `($1, $2), ($3, $4), …`: `each` says the fields of one row. Not in a text that has `$n` of its own.
    pub(crate) fn rows<T>(
        &mut self,
        rows: impl IntoIterator<Item = T>,
        mut each: impl FnMut(&mut Fields<'_>, T),
    ) -> &mut Self {
        self.fixed = false;
        for (number, row) in rows.into_iter().enumerate() {
            self.text.push_str(if number == 0 { "(" } else { ", (" });
            each(&mut Fields { sql: self, first: true }, row);
            self.text.push(')');
        }
        self
    }

    /// `($1, $2, …)`.
    pub(crate) fn list<'t, T: Encode<'t, Any> + Type<Any>>(
        &mut self,
        items: impl IntoIterator<Item = T>,
    ) -> &mut Self {
        self.fixed = false;
        self.text.push('(');
        let mut fields = Fields { sql: self, first: true };
        for item in items {
            fields.put(item);
        }
        if fields.first {
            // An empty list is no SQL; nothing equals NULL.
            self.text.push_str("NULL");
        }
        self.text.push(')');
        self
    }
}

/// Fields of one row of [`Sql::rows`].
pub(crate) struct Fields<'a> {
    sql: &'a mut Sql,
    first: bool,
}

impl Fields<'_> {
    pub(crate) fn put<'t, T: Encode<'t, Any> + Type<Any>>(&mut self, value: T) -> &mut Self {
        if !std::mem::take(&mut self.first) {
            self.sql.text.push_str(", ");
        }
        self.sql.text.push(MARK);
        self.sql.add(value);
        self
    }
}

impl Sql {
    fn query(self, backend: &str) -> Result<sqlx::query::Query<'static, Any, AnyArguments>, StoreError> {
        if let Some(error) = self.failed {
            return Err(StoreError::Bug(sqlx::Error::Encode(error)));
        }
        if !self.fixed && self.text.matches(MARK).count() != self.args.len() {
            return Err(StoreError::Bug(sqlx::Error::InvalidArgument(format!(
                "not all marked: {:.80}",
                self.text
            ))));
        }
        let text = if self.fixed { self.text } else { numbered(&self.text, backend == "PostgreSQL") };
        Ok(sqlx::query_with(AssertSqlSafe(text), self.args).persistent(self.fixed))
    }

    /// Rows changed.
    pub(crate) async fn run(self, db: &mut AnyConnection) -> Result<u64, StoreError> {
        Ok(self.query(db.backend_name())?.execute(db).await?.rows_affected())
    }

    pub(crate) async fn all(self, db: &mut AnyConnection) -> Result<Vec<AnyRow>, StoreError> {
        Ok(self.query(db.backend_name())?.fetch_all(db).await?)
    }

    pub(crate) async fn one(self, db: &mut AnyConnection) -> Result<AnyRow, StoreError> {
        Ok(self.query(db.backend_name())?.fetch_one(db).await?)
    }

    pub(crate) async fn maybe(self, db: &mut AnyConnection) -> Result<Option<AnyRow>, StoreError> {
        Ok(self.query(db.backend_name())?.fetch_optional(db).await?)
    }
}

fn numbered(text: &str, with_numbers: bool) -> String {
    let mut out = String::with_capacity(text.len() + text.len() / 2);
    for (number, part) in text.split(MARK).enumerate() {
        match number {
            0 => {}
            _ if with_numbers => {
                out.push('$');
                out.push_str(&number.to_string());
            }
            _ => out.push('?'),
        }
        out.push_str(part);
    }
    out
}

/// Shorthand for [`Sql::new`].
pub(crate) fn sql(text: &str) -> Sql {
    Sql::new(text)
}

/// A column, by number: names cost a look-up per field, which shows with thousands of rows.
pub(crate) fn col<'r, T>(row: &'r AnyRow, number: usize) -> Result<T, StoreError>
where
    T: sqlx::Decode<'r, Any> + Type<Any>,
{
    Ok(row.try_get(number)?)
}

/// A column that holds a word of the model.
pub(crate) fn word<T>(row: &AnyRow, number: usize) -> Result<T, StoreError>
where
    T: std::str::FromStr,
    T::Err: std::fmt::Display,
{
    parse(col::<&str>(row, number)?)
}

/// Like [`word`], where the column may be NULL.
pub(crate) fn maybe_word<T>(row: &AnyRow, number: usize) -> Result<Option<T>, StoreError>
where
    T: std::str::FromStr,
    T::Err: std::fmt::Display,
{
    col::<Option<&str>>(row, number)?.map(parse).transpose()
}

fn parse<T>(text: &str) -> Result<T, StoreError>
where
    T: std::str::FromStr,
    T::Err: std::fmt::Display,
{
    text.parse().map_err(|error: T::Err| StoreError::Corrupt(error.to_string()))
}

/// A value written with [`json`].
pub(crate) fn from_json<T: serde::de::DeserializeOwned>(text: &str) -> Result<T, StoreError> {
    serde_json::from_str(text).map_err(|error| {
        let start: String = text.chars().take(80).collect();
        StoreError::Corrupt(format!("{error} in {start:?}"))
    })
}

/// A value as JSON text.
pub(crate) fn json<T: serde::Serialize>(value: &T) -> Result<String, StoreError> {
    serde_json::to_string(value).map_err(|error| StoreError::Bug(sqlx::Error::Encode(Box::new(error))))
}

/// A word that its type writes as one JSON string (`"reset_gpu"`), without the quotes.
pub(crate) fn from_word<T: serde::de::DeserializeOwned>(text: &str) -> Result<T, StoreError> {
    serde_json::from_value(serde_json::Value::String(text.to_owned()))
        .map_err(|error| StoreError::Corrupt(error.to_string()))
}

/// A text of somebody else's as it may be stored: at most `max` bytes, and no NUL, which PostgreSQL refuses.
pub(crate) fn clean(text: &str, max: usize) -> String {
    let mut end = text.len().min(max);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text[..end].replace('\0', "\u{fffd}")
}

/// Longest sentence for a person that is kept, bytes.
pub(crate) const LINE: usize = 2_000;
/// Longest code, name of a metric or of a test.
pub(crate) const WORD: usize = 200;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_are_numbered_through() {
        let mut statement = Sql::new("INSERT INTO t (a, b) VALUES ");
        statement.rows([(1_i64, "x"), (2, "y")], |fields, (a, b)| {
            fields.put(a).put(b);
        });
        statement.push(" WHERE c IN ").list(["p", "q"]);
        let numbers = "INSERT INTO t (a, b) VALUES ($1, $2), ($3, $4) WHERE c IN ($5, $6)";
        assert_eq!(numbered(&statement.text, true), numbers);
        let marks = "INSERT INTO t (a, b) VALUES (?, ?), (?, ?) WHERE c IN (?, ?)";
        assert_eq!(numbered(&statement.text, false), marks);
        // Two ways to count are one too many.
        assert!(statement.bind(1_i64).query("SQLite").is_err());
        let mut statement = Sql::new("c IN ");
        statement.list(Vec::<String>::new());
        assert_eq!(statement.text, "c IN (NULL)");
    }

    #[test]
    fn texts_are_cut_between_characters_and_hold_no_nul() {
        assert_eq!(clean("aä", 2), "a");
        assert_eq!(clean("a\0b", 10), "a\u{fffd}b");
    }
}
