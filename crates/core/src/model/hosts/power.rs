//! The power of the VM's host, and its fence device: what it is told is done, and answered, when the exploration likes.

use super::{Bounds, Guest, World, id};
use crate::guard::Word;
use crate::id::{HostId, OpId};
use crate::io::{FenceOutcome, FenceRequest, Input};
use std::string::String;
use std::sync::Arc;

/// What fence device the VM's host has.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::model) enum Device {
    None,
    /// It does what it is told, and says what is.
    Honest,
    /// It says that it did what it was told, and does nothing.
    Deaf,
    /// It calls the host off, whether it is or not.
    Liar,
}

/// The host that has a device.
const SWITCHED: usize = 0;

/// What a device was asked, and not answered yet.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(super) struct Question {
    pub(super) by: usize,
    op: OpId,
    request: FenceRequest,
    pub(super) answer: Option<FenceOutcome>,
    /// Nobody waits for it any more.
    pub(super) given_up: bool,
}

impl World {
    pub(super) fn ask_device(&mut self, by: usize, op: OpId, host: &HostId, request: FenceRequest) {
        assert_eq!(*host, id(SWITCHED), "the only host with a device");
        self.questions.push(Question {
            by,
            op,
            request,
            answer: None,
            given_up: false,
        });
    }

    /// The device does what it was told.
    pub(super) fn device_acts(&mut self, bounds: &Bounds, at: usize) -> Option<()> {
        let question = self.questions.get(at)?.clone();
        let off = self.nodes[SWITCHED].off;
        let deaf = bounds.device == Device::Deaf;
        let answer = match question.request {
            FenceRequest::Status if off || bounds.device == Device::Liar => FenceOutcome::PowerOff,
            FenceRequest::Status => FenceOutcome::PowerOn,
            FenceRequest::Off => {
                if !off && !deaf {
                    self.lose_power(SWITCHED);
                }
                FenceOutcome::Done
            }
            FenceRequest::On => {
                if off && !deaf {
                    self.start_agent(bounds, SWITCHED, true);
                }
                FenceOutcome::Done
            }
        };
        if question.given_up {
            self.questions.remove(at);
        } else {
            self.questions[at].answer = Some(answer);
        }
        Some(())
    }

    /// Who asked has the answer.
    pub(super) fn device_answers(&mut self, bounds: &Bounds, at: usize) -> Option<()> {
        let question = self.questions.get(at)?.clone();
        self.questions.remove(at);
        self.tell_answer(bounds, &question, question.answer.clone()?);
        Some(())
    }

    /// Who asked waits no longer. What was told may be done later.
    pub(super) fn device_is_silent(&mut self, bounds: &Bounds, at: usize) -> Option<()> {
        let question = self.questions.get(at)?.clone();
        if question.answer.is_some() || question.request == FenceRequest::Status {
            self.questions.remove(at);
        } else {
            self.questions[at].given_up = true;
        }
        let silence = FenceOutcome::Unknown(String::from("silent"));
        self.tell_answer(bounds, &question, silence);
        Some(())
    }

    fn tell_answer(&mut self, bounds: &Bounds, question: &Question, answer: FenceOutcome) {
        let input = Input::Fenced(question.op, answer);
        self.drive(bounds, question.by, 17, |a| a.take(input));
    }

    /// A host loses its power: what it had under way may land.
    pub(super) fn lose_power(&mut self, n: usize) {
        self.ops.retain(|op| op.host != n || op.landed.is_none());
        self.changed.insert(n);
        let node = Arc::make_mut(&mut self.nodes[n]);
        (node.guest, node.word, node.off) = (Guest::None, Word::FREE, true);
        for op in self.ops.iter_mut().filter(|op| op.host == n) {
            op.given_up = true;
        }
    }
}
