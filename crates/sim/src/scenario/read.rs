//! Reading a TOML table with the line of everything, so that each complaint names its place.

use super::parse::ScenarioError;
use crate::clock::Nanos;
use mainstay_core::config::{nearest, parse_duration};
use mainstay_core::time::nanos;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// A file being read.
#[derive(Clone, Copy)]
pub(super) struct Source<'a> {
    pub(super) file: &'a str,
    pub(super) text: &'a str,
}

impl Source<'_> {
    pub(super) fn line(&self, offset: usize) -> usize {
        self.text
            .bytes()
            .take(offset)
            .filter(|b| *b == b'\n')
            .count()
            + 1
    }

    pub(super) fn error(&self, offset: usize, message: impl Into<String>) -> ScenarioError {
        ScenarioError {
            file: self.file.into(),
            line: self.line(offset),
            message: message.into(),
        }
    }

    /// An error about a name that is not known, with the nearest one that is.
    pub(super) fn unknown<'n>(
        &self,
        offset: usize,
        what: &str,
        name: &str,
        known: impl Iterator<Item = &'n str>,
    ) -> ScenarioError {
        let hint = nearest(name, known)
            .map(|n| format!("; did you mean \"{n}\"?"))
            .unwrap_or_default();
        self.error(offset, format!("there is no {what} \"{name}\"{hint}"))
    }
}

impl Source<'_> {
    /// An error about a word that is none of a few, with the nearest one or all of them.
    pub(super) fn no_word(&self, text: &Text, what: &str, words: &[&str]) -> ScenarioError {
        let hint = match nearest(&text.text, words.iter().copied()) {
            Some(near) => format!("did you mean \"{near}\"?"),
            None => format!("there are {}", words.join(", ")),
        };
        let message = format!("there is no {what} \"{}\"; {hint}", text.text);
        self.error(text.at, message)
    }
}

/// A text with its place.
#[derive(Clone, Debug)]
pub(super) struct Text {
    pub(super) text: String,
    pub(super) at: usize,
}

/// One table of the file; every key in it is known.
pub(super) struct Section<'a, 'd> {
    pub(super) source: Source<'a>,
    table: &'a DeTable<'d>,
    pub(super) at: usize,
    what: &'static str,
}

type Read<T> = Result<T, ScenarioError>;

impl<'a, 'd> Section<'a, 'd> {
    pub(super) fn new(
        source: Source<'a>,
        table: &'a DeTable<'d>,
        at: usize,
        what: &'static str,
        keys: &[&str],
    ) -> Read<Self> {
        for (key, _) in table {
            let name: &str = key.get_ref();
            if !keys.contains(&name) {
                let what = format!("key of {what}");
                return Err(source.unknown(key.span().start, &what, name, keys.iter().copied()));
            }
        }
        Ok(Self {
            source,
            table,
            at,
            what,
        })
    }

    /// Keys with their values, in the order of the map.
    pub(super) fn entries(&self) -> impl Iterator<Item = (&'a str, &'a Spanned<DeValue<'d>>)> {
        self.table.iter().map(|(k, v)| (k.get_ref().as_ref(), v))
    }

    pub(super) fn value(&self, key: &str) -> Option<&'a Spanned<DeValue<'d>>> {
        self.table.get(key)
    }

    pub(super) fn place(&self, key: &str) -> usize {
        self.value(key).map_or(self.at, |v| v.span().start)
    }

    pub(super) fn error<T>(&self, key: &str, message: impl Into<String>) -> Read<T> {
        Err(self.source.error(self.place(key), message))
    }

    fn wrong<T>(&self, key: &str, wanted: &str) -> Read<T> {
        let found = self
            .value(key)
            .map_or("nothing", |v| v.get_ref().type_str());
        self.error(key, format!("{key} takes {wanted}, not {found}"))
    }

    pub(super) fn need(&self, key: &str) -> Read<()> {
        match self.value(key) {
            Some(_) => Ok(()),
            None => Err(self
                .source
                .error(self.at, format!("{} needs {key}", self.what))),
        }
    }

    pub(super) fn text(&self, key: &str) -> Read<Option<Text>> {
        let Some(value) = self.value(key) else {
            return Ok(None);
        };
        match value.get_ref().as_str() {
            Some(text) => Ok(Some(Text {
                text: text.into(),
                at: value.span().start,
            })),
            None => self.wrong(key, "a text in quotes"),
        }
    }

    pub(super) fn time(&self, key: &str) -> Read<Option<Nanos>> {
        let Some(text) = self.text(key)? else {
            return Ok(None);
        };
        self.as_time(&text).map(Some)
    }

    pub(super) fn as_time(&self, text: &Text) -> Read<Nanos> {
        parse_duration(&text.text).map(nanos).ok_or_else(|| {
            let message = format!(
                "\"{}\" is no time; write \"300ms\", \"30s\", \"5m\" or \"1h\"",
                text.text
            );
            self.source.error(text.at, message)
        })
    }

    pub(super) fn integer(&self, key: &str) -> Read<Option<i64>> {
        let Some(value) = self.value(key) else {
            return Ok(None);
        };
        match integer(value.get_ref()) {
            Some(number) => Ok(Some(number)),
            None => self.wrong(key, "a whole number"),
        }
    }

    pub(super) fn number(&self, key: &str) -> Read<Option<u64>> {
        let Some(number) = self.integer(key)? else {
            return Ok(None);
        };
        match u64::try_from(number) {
            Ok(number) => Ok(Some(number)),
            Err(_) => self.error(key, format!("{key} must not be negative")),
        }
    }

    pub(super) fn truth(&self, key: &str) -> Read<Option<bool>> {
        let Some(value) = self.value(key) else {
            return Ok(None);
        };
        match value.get_ref().as_bool() {
            Some(truth) => Ok(Some(truth)),
            None => self.wrong(key, "true or false"),
        }
    }

    pub(super) fn texts(&self, key: &str) -> Read<Option<Vec<Text>>> {
        let Some(value) = self.value(key) else {
            return Ok(None);
        };
        let Some(list) = texts(value) else {
            return self.wrong(key, "a list of texts in quotes");
        };
        Ok(Some(list))
    }

    pub(super) fn lists(&self, key: &str) -> Read<Option<Vec<Vec<Text>>>> {
        let Some(value) = self.value(key) else {
            return Ok(None);
        };
        let lists = value
            .get_ref()
            .as_array()
            .and_then(|a| a.iter().map(texts).collect());
        match lists {
            Some(lists) => Ok(Some(lists)),
            None => self.wrong(key, "a list of lists of texts"),
        }
    }

    /// One of a few words.
    pub(super) fn word<T: Copy>(&self, key: &str, words: &[(&str, T)]) -> Read<Option<T>> {
        let Some(text) = self.text(key)? else {
            return Ok(None);
        };
        match words.iter().find(|(word, _)| *word == text.text) {
            Some((_, value)) => Ok(Some(*value)),
            None => {
                let words: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
                Err(self.source.no_word(&text, key, &words))
            }
        }
    }

    /// The tables of a list of tables.
    pub(super) fn tables(&self, key: &str) -> Read<Vec<(&'a DeTable<'d>, usize)>> {
        let Some(value) = self.value(key) else {
            return Ok(Vec::new());
        };
        let tables = value.get_ref().as_array().and_then(|a| {
            a.iter()
                .map(|v| v.get_ref().as_table().map(|t| (t, v.span().start)))
                .collect()
        });
        match tables {
            Some(tables) => Ok(tables),
            None => self.wrong(key, &format!("a list of tables, written [[{key}]]")),
        }
    }
}

fn texts(value: &Spanned<DeValue<'_>>) -> Option<Vec<Text>> {
    let text = |v: &Spanned<DeValue<'_>>| {
        Some(Text {
            text: v.get_ref().as_str()?.into(),
            at: v.span().start,
        })
    };
    value.get_ref().as_array()?.iter().map(text).collect()
}

pub(super) fn integer(value: &DeValue<'_>) -> Option<i64> {
    let number = value.as_integer()?;
    i64::from_str_radix(&number.as_str().replace('_', ""), number.radix()).ok()
}

/// A value as the text that a setting takes.
pub(super) fn plain(value: &DeValue<'_>) -> Option<String> {
    if let Some(text) = value.as_str() {
        return Some(text.into());
    }
    if let Some(truth) = value.as_bool() {
        return Some(truth.to_string());
    }
    if let Some(list) = value.as_array() {
        let parts: Option<Vec<String>> = list.iter().map(|v| plain(v.get_ref())).collect();
        return parts.map(|p| p.join(","));
    }
    integer(value).map(|n| n.to_string())
}
