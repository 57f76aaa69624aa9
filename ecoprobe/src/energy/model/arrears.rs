//! What windows were billed, and what is owed since.

/// What an account was billed for rows that are learned from, and arrears in windows that are not yet.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Account {
    pub(super) billed: f64,
    pub(super) ahead: f64,
}

impl Account {
    /// A window was billed, which is not learned from yet.
    pub(super) fn bill(&mut self, bill: Bill) {
        self.ahead += bill.arrears;
    }

    /// It is now.
    pub(super) fn learn(&mut self, bill: Bill) {
        self.billed += bill.joules;
        self.ahead -= bill.arrears;
    }

    /// What is missing to what it is to have.
    pub(super) fn owed(&self, due: f64) -> f64 {
        due - self.billed - self.ahead
    }
}

impl Bill {
    pub(super) fn add(&mut self, other: Self) {
        self.joules += other.joules;
        self.arrears += other.arrears;
    }
}

/// What somebody was billed for dynamic joules, or what was taken as idle, when it was drawn.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Bill {
    pub(super) joules: f64,
    /// The part of it that was for what was drawn before, paid or withheld.
    pub(super) arrears: f64,
}

/// Of each bill, so much more or less may be paid for what was drawn before.
const ARREARS: f64 = 0.5;

/// Each bill and what is owed beside it become one bill; the sum of all stays. What is paid to some, all
/// have to do without in proportion to their bills: the nearest to what everybody is to have, by least
/// squares, within the bounds.
pub(super) fn pay(bills: &mut [(f64, f64)]) {
    let sum: f64 = bills.iter().map(|(bill, _)| bill).sum();
    let paid = |&(bill, owed): &(f64, f64), more: f64| {
        (bill + owed + more * bill).clamp(bill * (1.0 - ARREARS), bill * (1.0 + ARREARS))
    };
    let owed = bills.iter().filter(|(bill, _)| *bill > 0.0).map(|(bill, owed)| (owed / bill).abs());
    let most = owed.fold(0.0, f64::max) + ARREARS;
    let (mut low, mut high) = (-most, most);
    // As near as the numbers are to one another.
    for _ in 0..60 {
        let middle = f64::midpoint(low, high);
        let too_much = bills.iter().map(|one| paid(one, middle)).sum::<f64>() > sum;
        if too_much { high = middle } else { low = middle }
    }
    for one in bills {
        one.0 = paid(one, low);
    }
}
