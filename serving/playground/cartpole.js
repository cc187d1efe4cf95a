// The cart and pole of Barto, Sutton and Anderson (1983), with the constants and the Euler steps of
// gymnasium's CartPole-v1: metres, seconds, radians, newtons.

const GRAVITY = 9.8;
const POLE_MASS = 0.1;
const TOTAL_MASS = 1.0 + POLE_MASS;
const HALF_LENGTH = 0.5;
const POLE_MOMENT = POLE_MASS * HALF_LENGTH;
const FORCE = 10.0;

export const SECONDS = 0.02; // a step
export const FURTHEST = 2.4;
export const STEEPEST = (12 * 2 * Math.PI) / 360;
export const POLE = 2 * HALF_LENGTH;

/** The state [x, speed, angle, angular speed] after a step of action 0, left, or 1, right. */
export function step([x, speed, angle, turn], action, push = 0) {
  const force = (action === 1 ? FORCE : -FORCE) + push;
  const [cosine, sine] = [Math.cos(angle), Math.sin(angle)];
  const moved = (force + POLE_MOMENT * turn * turn * sine) / TOTAL_MASS;
  const turned =
    (GRAVITY * sine - cosine * moved) /
    (HALF_LENGTH * (4.0 / 3.0 - (POLE_MASS * cosine * cosine) / TOTAL_MASS));
  const gained = moved - (POLE_MOMENT * turned * cosine) / TOTAL_MASS;
  return [x + SECONDS * speed, speed + SECONDS * gained, angle + SECONDS * turn, turn + SECONDS * turned];
}

export function fallen([x, , angle]) {
  return Math.abs(x) > FURTHEST || Math.abs(angle) > STEEPEST;
}

/** A state as an episode begins with: each number uniform in [-0.05, 0.05]. */
export function begin(random = Math.random) {
  return [0, 0, 0, 0].map(() => random() * 0.1 - 0.05);
}
