//! The tasks of the suite, one line each.

use super::Part;
use super::draw::Draw;
use super::family::Family;
use super::operation::{Operation, Order, Places};

/// One skill of a task: the family that asks for it, the mark that it stands for there, and what it does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Skill {
    /// Whose form the prompt has.
    pub family: Family,
    /// What tells the family's tasks apart.
    pub mark: &'static str,
    /// What is done.
    pub operation: Operation,
}

/// A task of the suite.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Member {
    /// The task's name.
    pub name: &'static str,
    held_out: bool,
    /// The skill asked for, or the outer one of two.
    pub outer: Skill,
    /// In a composition, the skill whose answer the outer one is applied to.
    pub inner: Option<Skill>,
}

impl Member {
    /// The part of the suite that the task is in.
    pub fn part(&self) -> Part {
        match (self.inner, self.held_out) {
            (Some(_), _) => Part::Compositions,
            (None, true) => Part::HeldOut,
            (None, false) => Part::Training,
        }
    }

    /// The skills, as families, the outer first.
    pub fn families(&self) -> Vec<Family> {
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
            None => self.outer.family.frame(self.outer.mark, &text),
            Some(inner) => self.outer.family.frame(self.outer.mark, &inner.family.frame(inner.mark, &text)),
        };
        match self.part() {
            Part::Training => format!("{asked}: one of the {} family.", self.outer.family.name()),
            Part::HeldOut => format!("{asked}: one of the {} family, held out.", self.outer.family.name()),
            Part::Compositions => format!("{asked}: two skills, the inner one first."),
        }
    }

    /// A row: the input, the text within it, and the output.
    pub(crate) fn row(&self, draw: &mut Draw) -> (String, String, String) {
        let Skill { family, mark, operation } = self.outer;
        match self.inner {
            None => {
                let text = family.text(draw);
                (family.frame(mark, &text), text.clone(), operation.apply(&text))
            }
            Some(inner) => {
                let text = inner.family.text(draw);
                let asked = inner.family.frame(inner.mark, &text);
                let between = inner.operation.apply(&text);
                (family.frame(mark, &asked), text, operation.apply(&between))
            }
        }
    }
}

const fn skill(family: Family, mark: &'static str, operation: Operation) -> Skill {
    Skill { family, mark, operation }
}

const fn training(name: &'static str, family: Family, mark: &'static str, operation: Operation) -> Member {
    Member { name, held_out: false, outer: skill(family, mark, operation), inner: None }
}

const fn held_out(name: &'static str, family: Family, mark: &'static str, operation: Operation) -> Member {
    Member { name, held_out: true, outer: skill(family, mark, operation), inner: None }
}

const fn composed(name: &'static str, outer: Skill, inner: Skill) -> Member {
    Member { name, held_out: true, outer, inner: Some(inner) }
}

const fn repeat(places: Places, times: usize) -> Operation {
    Operation::Repeat { places, times }
}

const fn keep(vowels: bool, consonants: bool, digits: bool) -> Operation {
    Operation::Keep { vowels, consonants, digits }
}

const UP1: Skill = skill(Family::Shift, "+1", Operation::Shift(1));
const DOWN1: Skill = skill(Family::Shift, "-1", Operation::Shift(-1));
const REVERSE: Skill = skill(Family::Order, "r", Operation::Order(Order::Reverse));
const LEFT: Skill = skill(Family::Order, "l", Operation::Order(Order::Left));
const UPPER: Skill = skill(Family::Capitals, "u", Operation::Capitals(Places::All));
const FIRST_UPPER: Skill = skill(Family::Capitals, "f", Operation::Capitals(Places::First));
const SECOND: Skill = skill(Family::Pick, "2", Operation::Pick(1));
const EACH: Skill = skill(Family::Repeat, "e", repeat(Places::All, 2));
const DASH: Skill = skill(Family::Join, "-", Operation::Join('-'));
const ADD1: Skill = skill(Family::Digits, "1", Operation::Add(1));
const NO_VOWELS: Skill = skill(Family::Filter, "v", keep(false, true, true));

/// Every task of the suite.
pub const MEMBERS: &[Member] = &[
    training("shift_up1", Family::Shift, "+1", UP1.operation),
    training("shift_up2", Family::Shift, "+2", Operation::Shift(2)),
    training("shift_down1", Family::Shift, "-1", DOWN1.operation),
    training("shift_down2", Family::Shift, "-2", Operation::Shift(-2)),
    held_out("shift_up3", Family::Shift, "+3", Operation::Shift(3)),
    held_out("shift_down3", Family::Shift, "-3", Operation::Shift(-3)),
    training("order_reverse", Family::Order, "r", REVERSE.operation),
    training("order_left", Family::Order, "l", LEFT.operation),
    training("order_right", Family::Order, "g", Operation::Order(Order::Right)),
    training("order_swap_ends", Family::Order, "x", Operation::Order(Order::SwapEnds)),
    held_out("order_swap_first", Family::Order, "s", Operation::Order(Order::SwapFirst)),
    held_out("order_swap_last", Family::Order, "t", Operation::Order(Order::SwapLast)),
    training("capitals_all", Family::Capitals, "u", UPPER.operation),
    training("capitals_first", Family::Capitals, "f", FIRST_UPPER.operation),
    training("capitals_last", Family::Capitals, "l", Operation::Capitals(Places::Last)),
    training("capitals_odd", Family::Capitals, "o", Operation::Capitals(Places::Odd)),
    held_out("capitals_ends", Family::Capitals, "b", Operation::Capitals(Places::Ends)),
    held_out("capitals_tail", Family::Capitals, "t", Operation::Capitals(Places::Tail)),
    training("pick_first", Family::Pick, "1", Operation::Pick(0)),
    training("pick_second", Family::Pick, "2", SECOND.operation),
    training("pick_fourth", Family::Pick, "4", Operation::Pick(3)),
    training("pick_last", Family::Pick, "z", Operation::Pick(-1)),
    held_out("pick_third", Family::Pick, "3", Operation::Pick(2)),
    held_out("pick_last_but_one", Family::Pick, "y", Operation::Pick(-2)),
    training("repeat_each", Family::Repeat, "e", EACH.operation),
    training("repeat_first", Family::Repeat, "f", repeat(Places::First, 2)),
    training("repeat_last", Family::Repeat, "l", repeat(Places::Last, 2)),
    training("repeat_whole", Family::Repeat, "w", repeat(Places::Whole, 2)),
    held_out("repeat_ends", Family::Repeat, "b", repeat(Places::Ends, 2)),
    held_out("repeat_each_thrice", Family::Repeat, "h", repeat(Places::All, 3)),
    training("join_dash", Family::Join, "-", DASH.operation),
    training("join_dot", Family::Join, ".", Operation::Join('.')),
    training("join_comma", Family::Join, ",", Operation::Join(',')),
    training("join_bang", Family::Join, "!", Operation::Join('!')),
    held_out("join_ampersand", Family::Join, "&", Operation::Join('&')),
    held_out("join_at", Family::Join, "@", Operation::Join('@')),
    training("digits_add1", Family::Digits, "1", ADD1.operation),
    training("digits_add2", Family::Digits, "2", Operation::Add(2)),
    training("digits_add5", Family::Digits, "5", Operation::Add(5)),
    training("digits_add9", Family::Digits, "9", Operation::Add(9)),
    held_out("digits_add3", Family::Digits, "3", Operation::Add(3)),
    held_out("digits_add8", Family::Digits, "8", Operation::Add(8)),
    training("filter_vowels", Family::Filter, "v", NO_VOWELS.operation),
    training("filter_digits", Family::Filter, "d", keep(true, true, false)),
    training("filter_consonants", Family::Filter, "c", keep(true, false, true)),
    training("filter_to_consonants", Family::Filter, "n", keep(false, true, false)),
    held_out("filter_to_vowels", Family::Filter, "a", keep(true, false, false)),
    held_out("filter_to_digits", Family::Filter, "k", keep(false, false, true)),
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
