package boot

// SNP is what the plan of an SEV-SNP launch depends on besides the image.
type SNP struct {
	CBit int // number of the page table bit that makes memory private
}
