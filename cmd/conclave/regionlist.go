package main

import (
	"regexp"
	"slices"
)

// regionsOfAWS are the Regions of the partition aws.
var regionsOfAWS = []string{
	"af-south-1",
	"ap-east-1", "ap-east-2",
	"ap-northeast-1", "ap-northeast-2", "ap-northeast-3",
	"ap-south-1", "ap-south-2",
	"ap-southeast-1", "ap-southeast-2", "ap-southeast-3", "ap-southeast-4", "ap-southeast-5", "ap-southeast-6", "ap-southeast-7",
	"ca-central-1", "ca-west-1",
	"eu-central-1", "eu-central-2", "eu-north-1", "eu-south-1", "eu-south-2", "eu-west-1", "eu-west-2", "eu-west-3",
	"il-central-1",
	"me-central-1", "me-south-1", "me-west-1",
	"mx-central-1",
	"sa-east-1", "sa-west-1",
	"us-east-1", "us-east-2", "us-west-1", "us-west-2",
}

// awsRegionName is the form of Regions' names in AWS's API.
var awsRegionName = regexp.MustCompile(`^([a-z]+-){2,3}\d+$`)

// awsRegions returns AWS's Regions, with first, which need not be one of them,
// before the others. If first does not have the form of AWS's names, it is the
// only Region, as ReplicateKey could not name it.
func awsRegions(first string) []string {
	if !awsRegionName.MatchString(first) {
		return []string{first}
	}
	return append([]string{first}, slices.DeleteFunc(slices.Clone(regionsOfAWS), func(r string) bool { return r == first })...)
}
