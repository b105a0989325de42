package cca

// abi14 is version 14 of the series: to a monitor that leaves PSCI to the kernel
// a new capability number and nothing else.
var abi14 = abi{name: "v14", capability: 249, rmm: RMM2, attributes: true, populate: populateOn}
