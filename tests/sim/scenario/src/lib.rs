//! What a simulated blade is: scenario file, planted faults, state shared by the three simulated libraries.
