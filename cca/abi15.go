package cca

// abi15 is version 15 of the series. Whether a page is private is the
// guest_memfd's own attribute now; one that was created without flags is private
// for good, and the shared half of the address space stays with the memory that
// user space mapped. So nothing is left to tell the kernel.
var abi15 = abi{name: "v15", capability: 251, rmm: RMM2, populate: populateOn, private: 250} // KVM_CAP_GUEST_MEMFD_MEMORY_ATTRIBUTES
