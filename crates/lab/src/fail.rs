//! Errors as people read them: what went wrong, where, and what to do about it.

use mainstay_agent::control::client::ClientError;
use serde_json::{Value, json};
use std::fmt;

/// Why a command failed.
#[derive(Debug, Clone)]
pub struct Failure {
    what: String,
    place: Option<String>,
    remedy: Option<String>,
    interrupted: bool,
}

/// A result that a user may see.
pub type Result<T> = std::result::Result<T, Failure>;

impl Failure {
    /// A failure of which only this is known.
    #[must_use]
    pub fn new(what: impl fmt::Display) -> Self {
        Self {
            what: what.to_string(),
            place: None,
            remedy: None,
            interrupted: false,
        }
    }

    /// Ctrl-C, SIGTERM or SIGHUP came: no fault, but an end.
    #[must_use]
    pub fn interrupted() -> Self {
        Self {
            interrupted: true,
            ..Self::new("interrupted")
        }
    }

    /// Whether somebody ended it on purpose.
    #[must_use]
    pub fn is_interrupted(&self) -> bool {
        self.interrupted
    }

    /// Adds where it happened.
    #[must_use]
    pub fn at(mut self, place: impl fmt::Display) -> Self {
        self.place = Some(place.to_string());
        self
    }

    /// Adds what to do about it.
    #[must_use]
    pub fn remedy(mut self, remedy: impl fmt::Display) -> Self {
        self.remedy = Some(remedy.to_string());
        self
    }

    /// It on one line, without the place: for a sentence about something else.
    #[must_use]
    pub fn one_line(&self) -> String {
        match &self.remedy {
            Some(remedy) => format!("{} ({remedy})", self.what),
            None => self.what.clone(),
        }
    }

    /// It for programs: `error`, `place`, `remedy`.
    #[must_use]
    pub fn to_json(&self) -> Value {
        json!({ "error": self.what, "place": self.place, "remedy": self.remedy })
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.what)?;
        if let Some(place) = &self.place {
            write!(f, "\n    at: {place}")?;
        }
        if let Some(remedy) = &self.remedy {
            write!(f, "\nremedy: {remedy}")?;
        }
        Ok(())
    }
}

/// Turns library errors into failures with a sentence before them.
pub trait Context<T> {
    /// Says what was being done.
    ///
    /// # Errors
    /// The same error as a [`Failure`], `what` before it.
    fn context(self, what: impl fmt::Display) -> Result<T>;
}

impl<T, E: std::error::Error> Context<T> for std::result::Result<T, E> {
    fn context(self, what: impl fmt::Display) -> Result<T> {
        self.map_err(|error| {
            let mut text = format!("{what}: {error}");
            let mut source = error.source();
            while let Some(cause) = source {
                let cause_text = cause.to_string();
                if !text.contains(&cause_text) {
                    text = format!("{text}: {cause_text}");
                }
                source = cause.source();
            }
            Failure::new(text)
        })
    }
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        let start = "start an agent (`mainstay agent --config FILE`) or the demo (`mainstay demo`), or name its \
                     control socket with --socket or MAINSTAY_SOCKET";
        let (what, place, remedy) = match &error {
            ClientError::NoSocket(path) => ("there is no control socket", path, start),
            ClientError::Dead(path) => (
                "nobody listens at this control socket; its agent is gone",
                path,
                start,
            ),
            ClientError::Denied(path) => (
                "this user may not use the control socket",
                path,
                "run the command as the agent's user, or with sudo",
            ),
            ClientError::Silent(path) => ("the agent does not answer", path, "see its log"),
            ClientError::Closed(path) => (
                "the agent closed the connection without an answer",
                path,
                "see its log",
            ),
            ClientError::Answer { path, source } => {
                return Self::new(format_args!(
                    "the answer is not one that this program can read: {source}"
                ))
                .at(path.display())
                .remedy("use the `mainstay` of the agent's version");
            }
            ClientError::Io { path, source } => {
                return Self::new(format_args!("the connection failed: {source}"))
                    .at(path.display())
                    .remedy("name the control socket of an agent with --socket");
            }
            ClientError::OutcomeUnknown(path) => (
                "the agent gave no answer to the end: whether the change was made is not known",
                path,
                "look at the configuration's version (`mainstay status`), and ask again",
            ),
            other => return Self::new(other),
        };
        Self::new(what).at(place.display()).remedy(remedy)
    }
}
