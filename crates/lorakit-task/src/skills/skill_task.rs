//! The tasks of the suite, each on one line.

use crate::skills::operation::{Operation, Positions, Reordering};
use crate::skills::skill_family::SkillFamily;
use crate::skills::suite_part::SuitePart;
use crate::skills::text_rng::TextRng;

/// One skill of a task: how the prompt asks for it, and what it does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Skill {
    /// The family, which gives the prompt pattern.
    pub family: SkillFamily,
    /// What distinguishes the family's tasks in the prompt.
    pub mark: &'static str,
    /// What is done to the text.
    pub operation: Operation,
}

/// A task of the suite.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SkillTask {
    /// The task's name.
    pub name: &'static str,
    held_out: bool,
    /// The skill, or the outer one of a composition.
    pub outer: Skill,
    /// The inner skill of a composition, to whose answer the outer one is applied.
    pub inner: Option<Skill>,
}

impl SkillTask {
    /// The part of the suite.
    pub fn part(&self) -> SuitePart {
        match (self.inner, self.held_out) {
            (Some(_), _) => SuitePart::Compositions,
            (None, true) => SuitePart::HeldOut,
            (None, false) => SuitePart::Training,
        }
    }

    /// The families of the skills, the outer first.
    pub fn families(&self) -> Vec<SkillFamily> {
        self.skills().map(|skill| skill.family).collect()
    }

    /// The skills, the outer first.
    pub fn skills(&self) -> impl Iterator<Item = Skill> {
        [self.outer].into_iter().chain(self.inner)
    }

    /// One sentence for listings.
    pub fn description(&self) -> String {
        let text = "TEXT".to_string();
        let asked = match self.inner {
            None => self.outer.family.prompt(self.outer.mark, &text),
            Some(inner) => self.outer.family.prompt(self.outer.mark, &inner.family.prompt(inner.mark, &text)),
        };
        match self.part() {
            SuitePart::Training => format!("{asked}: one of the {} family.", self.outer.family.name()),
            SuitePart::HeldOut => format!("{asked}: one of the {} family, held out.", self.outer.family.name()),
            SuitePart::Compositions => format!("{asked}: two skills, the inner one first."),
        }
    }

    /// A random row: the input, the text in it, and the output.
    pub(crate) fn row(&self, rng: &mut TextRng) -> (String, String, String) {
        let Skill { family, mark, operation } = self.outer;
        match self.inner {
            None => {
                let text = family.text(rng);
                (family.prompt(mark, &text), text.clone(), operation.apply(&text))
            }
            Some(inner) => {
                let text = inner.family.text(rng);
                let asked = inner.family.prompt(inner.mark, &text);
                let between = inner.operation.apply(&text);
                (family.prompt(mark, &asked), text, operation.apply(&between))
            }
        }
    }
}

const fn skill(family: SkillFamily, mark: &'static str, operation: Operation) -> Skill {
    Skill { family, mark, operation }
}

const fn training(name: &'static str, family: SkillFamily, mark: &'static str, operation: Operation) -> SkillTask {
    SkillTask { name, held_out: false, outer: skill(family, mark, operation), inner: None }
}

const fn held_out(name: &'static str, family: SkillFamily, mark: &'static str, operation: Operation) -> SkillTask {
    SkillTask { name, held_out: true, outer: skill(family, mark, operation), inner: None }
}

const fn composed(name: &'static str, outer: Skill, inner: Skill) -> SkillTask {
    SkillTask { name, held_out: true, outer, inner: Some(inner) }
}

const fn repeat(positions: Positions, times: usize) -> Operation {
    Operation::Repeat { positions, times }
}

const fn keep(vowels: bool, consonants: bool, digits: bool) -> Operation {
    Operation::Keep { vowels, consonants, digits }
}

const UP1: Skill = skill(SkillFamily::Shift, "+1", Operation::Shift(1));
const DOWN1: Skill = skill(SkillFamily::Shift, "-1", Operation::Shift(-1));
const REVERSE: Skill = skill(SkillFamily::Order, "r", Operation::Order(Reordering::Reverse));
const LEFT: Skill = skill(SkillFamily::Order, "l", Operation::Order(Reordering::Left));
const UPPER: Skill = skill(SkillFamily::Capitals, "u", Operation::Capitals(Positions::All));
const FIRST_UPPER: Skill = skill(SkillFamily::Capitals, "f", Operation::Capitals(Positions::First));
const SECOND: Skill = skill(SkillFamily::Pick, "2", Operation::Pick(1));
const EACH: Skill = skill(SkillFamily::Repeat, "e", repeat(Positions::All, 2));
const DASH: Skill = skill(SkillFamily::Join, "-", Operation::Join('-'));
const ADD1: Skill = skill(SkillFamily::Digits, "1", Operation::Add(1));
const NO_VOWELS: Skill = skill(SkillFamily::Filter, "v", keep(false, true, true));

/// Every task of the suite.
pub const SKILL_TASKS: &[SkillTask] = &[
    training("shift_up1", SkillFamily::Shift, "+1", UP1.operation),
    training("shift_up2", SkillFamily::Shift, "+2", Operation::Shift(2)),
    training("shift_down1", SkillFamily::Shift, "-1", DOWN1.operation),
    training("shift_down2", SkillFamily::Shift, "-2", Operation::Shift(-2)),
    held_out("shift_up3", SkillFamily::Shift, "+3", Operation::Shift(3)),
    held_out("shift_down3", SkillFamily::Shift, "-3", Operation::Shift(-3)),
    training("order_reverse", SkillFamily::Order, "r", REVERSE.operation),
    training("order_left", SkillFamily::Order, "l", LEFT.operation),
    training("order_right", SkillFamily::Order, "g", Operation::Order(Reordering::Right)),
    training("order_swap_ends", SkillFamily::Order, "x", Operation::Order(Reordering::SwapEnds)),
    held_out("order_swap_first", SkillFamily::Order, "s", Operation::Order(Reordering::SwapFirst)),
    held_out("order_swap_last", SkillFamily::Order, "t", Operation::Order(Reordering::SwapLast)),
    training("capitals_all", SkillFamily::Capitals, "u", UPPER.operation),
    training("capitals_first", SkillFamily::Capitals, "f", FIRST_UPPER.operation),
    training("capitals_last", SkillFamily::Capitals, "l", Operation::Capitals(Positions::Last)),
    training("capitals_odd", SkillFamily::Capitals, "o", Operation::Capitals(Positions::Odd)),
    held_out("capitals_ends", SkillFamily::Capitals, "b", Operation::Capitals(Positions::Ends)),
    held_out("capitals_tail", SkillFamily::Capitals, "t", Operation::Capitals(Positions::Tail)),
    training("pick_first", SkillFamily::Pick, "1", Operation::Pick(0)),
    training("pick_second", SkillFamily::Pick, "2", SECOND.operation),
    training("pick_fourth", SkillFamily::Pick, "4", Operation::Pick(3)),
    training("pick_last", SkillFamily::Pick, "z", Operation::Pick(-1)),
    held_out("pick_third", SkillFamily::Pick, "3", Operation::Pick(2)),
    held_out("pick_last_but_one", SkillFamily::Pick, "y", Operation::Pick(-2)),
    training("repeat_each", SkillFamily::Repeat, "e", EACH.operation),
    training("repeat_first", SkillFamily::Repeat, "f", repeat(Positions::First, 2)),
    training("repeat_last", SkillFamily::Repeat, "l", repeat(Positions::Last, 2)),
    training("repeat_whole", SkillFamily::Repeat, "w", repeat(Positions::Whole, 2)),
    held_out("repeat_ends", SkillFamily::Repeat, "b", repeat(Positions::Ends, 2)),
    held_out("repeat_each_thrice", SkillFamily::Repeat, "h", repeat(Positions::All, 3)),
    training("join_dash", SkillFamily::Join, "-", DASH.operation),
    training("join_dot", SkillFamily::Join, ".", Operation::Join('.')),
    training("join_comma", SkillFamily::Join, ",", Operation::Join(',')),
    training("join_bang", SkillFamily::Join, "!", Operation::Join('!')),
    held_out("join_ampersand", SkillFamily::Join, "&", Operation::Join('&')),
    held_out("join_at", SkillFamily::Join, "@", Operation::Join('@')),
    training("digits_add1", SkillFamily::Digits, "1", ADD1.operation),
    training("digits_add2", SkillFamily::Digits, "2", Operation::Add(2)),
    training("digits_add5", SkillFamily::Digits, "5", Operation::Add(5)),
    training("digits_add9", SkillFamily::Digits, "9", Operation::Add(9)),
    held_out("digits_add3", SkillFamily::Digits, "3", Operation::Add(3)),
    held_out("digits_add8", SkillFamily::Digits, "8", Operation::Add(8)),
    training("filter_vowels", SkillFamily::Filter, "v", NO_VOWELS.operation),
    training("filter_digits", SkillFamily::Filter, "d", keep(true, true, false)),
    training("filter_consonants", SkillFamily::Filter, "c", keep(true, false, true)),
    training("filter_to_consonants", SkillFamily::Filter, "n", keep(false, true, false)),
    held_out("filter_to_vowels", SkillFamily::Filter, "a", keep(true, false, false)),
    held_out("filter_to_digits", SkillFamily::Filter, "k", keep(false, false, true)),
    composed("reverse_of_up1", REVERSE, UP1),
    composed("left_of_down1", LEFT, DOWN1),
    composed("up1_of_left", UP1, LEFT),
    composed("upper_of_reverse", UPPER, REVERSE),
    composed("second_of_reverse", SECOND, REVERSE),
    composed("each_of_upper", EACH, UPPER),
    composed("dash_of_reverse", DASH, REVERSE),
    composed("dash_of_add1", DASH, ADD1),
    composed("first_upper_of_up1", FIRST_UPPER, UP1),
    composed("reverse_of_no_vowels", REVERSE, NO_VOWELS),
];
